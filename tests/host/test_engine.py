"""engine: ONNX becomes a plan without a GPU; a refusal names the node; nothing takes the caller down with it."""

import json
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest
from edgeprune_device.errors import GateError, InputError
from onnx import TensorProto, helper, numpy_helper

from edgeprune import engine
from edgeprune.engine import EngineBuild

needs_tensorrt = pytest.mark.skipif(engine.available() is not None, reason=str(engine.available()))


def one_conv(path, activation="Relu", domain=""):
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["c"], name="/model.0/conv/Conv"),
        helper.make_node(activation, ["c"], ["output0"], name="/model.1/cv2.0/cv2.0.1/act/Act", domain=domain),
    ]
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)  # noqa: E731
    graph = helper.make_graph(nodes, "g", [value("images", [1, 3, 8, 8])], [value("output0", [1, 4, 6, 6])], [weight])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@needs_tensorrt
def test_a_plan_is_built_without_a_gpu(tmp_path, capfd):
    done = engine.build(one_conv(tmp_path / "m.onnx"), "SM86")
    assert done.reason is None and done.compute == "SM86"
    assert done.builder.startswith("TensorRT for RTX ")
    assert done.size_bytes == len(done.plan) > 1000
    assert not done.plan.startswith(b"{")  # raw: no JSON before it
    assert done.parse_seconds > 0 and done.build_seconds > 0
    assert capfd.readouterr() == ("", "")
    said = json.loads(json.dumps(done.to_json()))
    assert said["size_bytes"] == done.size_bytes and "plan" not in said


@needs_tensorrt
def test_an_unknown_architecture_is_a_reason_not_an_error(tmp_path):
    done = engine.build(one_conv(tmp_path / "m.onnx"), "SM87")
    assert done.plan is None and done.size_bytes is None
    assert "SM87" in done.reason and "SM86" in done.reason
    assert "SM86" in engine.computes() and "SM87" not in engine.computes()


@needs_tensorrt
def test_a_refusal_names_operator_layer_and_reason_in_one_line(tmp_path):
    path = one_conv(tmp_path / "m.onnx", activation="Nonsense", domain="nowhere")
    with pytest.raises(GateError) as refused:
        engine.build(path)
    message = str(refused.value)
    assert message.startswith("m.onnx: TensorRT for RTX ")
    assert "Nonsense" in message and "layer model.1.cv2.0.1.act" in message
    assert "\n" not in message


@needs_tensorrt
def test_a_truncated_file_is_refused(tmp_path):
    path = one_conv(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(GateError, match=r"m\.onnx: TensorRT for RTX .* refuses it: ."):
        engine.build(path)


def test_a_missing_file_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="no such ONNX file"):
        engine.build(tmp_path / "none.onnx")


def test_without_tensorrt_there_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)  # import raises ImportError
    assert "not installed" in engine.available()
    done = engine.build(one_conv(tmp_path / "m.onnx"))
    assert (done.plan, done.builder, engine.computes()) == (None, None, ())
    assert done.reason == engine.available()


@needs_tensorrt
@pytest.mark.parametrize(
    "script, reason",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("raise SystemExit('no memory left')", "no memory left"),
        ("import time; time.sleep(60)", "no engine after 1 s"),
        ("print('not json')", "code 0"),
    ],
)
def test_a_crash_of_the_builder_does_not_take_the_caller_along(tmp_path, monkeypatch, script, reason):
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **kw: run([sys.executable, "-c", script], **kw))
    done = engine.build(one_conv(tmp_path / "m.onnx"), timeout_s=1 if "sleep" in script else 60)
    assert done.plan is None and reason in done.reason


def test_json_of_a_build_that_did_not_happen():
    assert EngineBuild(None, "SM86", None, None, None, None, "why").to_json()["reason"] == "why"
    assert engine._death(-int(signal.SIGKILL), "") == "the builder crashed (SIGKILL)"


def test_the_module_imports_neither_torch_nor_onnx():
    code = "import sys, edgeprune.engine; print(sorted({'torch', 'onnx', 'ultralytics'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
