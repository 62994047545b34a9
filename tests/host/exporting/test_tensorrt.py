"""tensorrt: ONNX becomes a plan without a GPU, a refusal names the node, and a crash does not end the caller."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from edgeprune_device import onnx_file
from edgeprune_device.engine import Request, library, process
from edgeprune_device.engine import build as building
from edgeprune_device.errors import GateError, InputError
from onnx import TensorProto, helper, numpy_helper

from edgeprune.exporting import tensorrt
from edgeprune.exporting.tensorrt import EngineBuild

needs_tensorrt = pytest.mark.skipif(tensorrt.available() is not None, reason=str(tensorrt.available()))


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
def test_plan_is_built_without_a_gpu(tmp_path, capfd):
    done = tensorrt.build(one_conv(tmp_path / "m.onnx"), "SM86")
    assert done.reason is None and done.compute == "SM86"
    assert done.builder.startswith("TensorRT for RTX ")
    assert done.size_bytes == len(done.plan) > 1000
    assert not done.plan.startswith(b"{")  # raw: no JSON before it
    assert done.parse_seconds > 0 and done.build_seconds > 0
    assert capfd.readouterr() == ("", "")
    entry = json.loads(json.dumps(done.to_json()))
    assert entry["size_bytes"] == done.size_bytes and "plan" not in entry


@needs_tensorrt
def test_unknown_architecture_gives_a_reason_and_no_error(tmp_path):
    done = tensorrt.build(one_conv(tmp_path / "m.onnx"), "SM87")
    assert done.plan is None and done.size_bytes is None
    assert "SM87" in done.reason and "SM86" in done.reason
    assert "SM86" in tensorrt.computes() and "SM87" not in tensorrt.computes()


@needs_tensorrt
def test_a_refusal_names_operator_layer_and_reason_in_one_line(tmp_path):
    path = one_conv(tmp_path / "m.onnx", activation="Nonsense", domain="nowhere")
    with pytest.raises(GateError) as refused:
        tensorrt.build(path)
    message = str(refused.value)
    assert message.startswith("m.onnx: refused by TensorRT for RTX ")
    assert "Nonsense" in message and "layer model.1.cv2.0.1.act" in message
    assert "\n" not in message


@needs_tensorrt
def test_a_truncated_file_is_refused(tmp_path):
    path = one_conv(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(GateError, match=r"m\.onnx: refused by TensorRT for RTX .*: ."):
        tensorrt.build(path)


def test_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such ONNX file"):
        tensorrt.build(tmp_path / "none.onnx")


def test_missing_tensorrt_gives_a_reason(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)  # import raises ImportError
    assert "not installed" in tensorrt.available()
    done = tensorrt.build(one_conv(tmp_path / "m.onnx"))
    assert (done.plan, done.builder, tensorrt.computes()) == (None, None, ())
    assert done.reason == tensorrt.available()


@needs_tensorrt
@pytest.mark.parametrize(
    "script, reason",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("raise SystemExit('no memory left')", "no memory left"),
        ("import time; time.sleep(60)", "the engine was not built within 1 s"),
        ("print('not json')", "code 0"),
    ],
)
def test_crash_of_the_builder_does_not_end_the_caller(tmp_path, monkeypatch, script, reason):
    start = subprocess.Popen
    monkeypatch.setattr(process.subprocess, "Popen", lambda command, **kw: start([sys.executable, "-c", script], **kw))
    done = tensorrt.build(one_conv(tmp_path / "m.onnx"), timeout_s=1 if "sleep" in script else 60)
    assert done.plan is None and reason in done.reason


def test_json_of_a_failed_build_holds_the_reason():
    assert EngineBuild(None, "SM86", None, None, None, None, "why").to_json()["reason"] == "why"


def quantized(path, opset=17, kind=np.float32):
    """A Conv with Q/DQ on both inputs, followed by a SiLU, in `kind`, with FP32 inputs and outputs."""
    whole = np.dtype(kind) == np.float32
    tensor = numpy_helper.from_array
    weights = [
        tensor(np.ones((4, 3, 3, 3), np.int8), "w"),
        tensor(np.full(4, 0.1, kind), "ws"),
        tensor(np.zeros(4, np.int8), "wz"),
        tensor(np.array(0.1, kind), "s"),
        tensor(np.array(0, np.int8), "z"),
        tensor(np.ones(4, kind), "b"),
    ]
    to = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [
        *([] if whole else [helper.make_node("Cast", ["images"], ["x"], name="/cast", to=to)]),
        helper.make_node("QuantizeLinear", ["images" if whole else "x", "s", "z"], ["q"], name="/model.0/conv/Q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="/model.0/conv/DQ"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], name="/model.0/conv/WDQ", axis=0),
        helper.make_node("Conv", ["d", "dw", "b"], ["c"], name="/model.0/conv/Conv"),
        helper.make_node("Sigmoid", ["c"], ["g"], name="/model.0/act/Sigmoid"),
        helper.make_node("Mul", ["c", "g"], ["output0" if whole else "m"], name="/model.0/act/Mul"),
        *([] if whole else [helper.make_node("Cast", ["m"], ["output0"], name="/back", to=TensorProto.FLOAT)]),
    ]
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)  # noqa: E731
    graph = helper.make_graph(nodes, "g", [value("images", [1, 3, 8, 8])], [value("output0", [1, 4, 6, 6])], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
    return path


@needs_tensorrt
def test_device_builder_builds_every_precision_with_the_real_library(tmp_path):
    files = {
        "fp32": one_conv(tmp_path / "fp32.onnx"),
        "int8": quantized(tmp_path / "int8.onnx"),
        "int8-fp16": quantized(tmp_path / "int8-fp16.onnx", 19, np.float16),
    }
    for precision, path in files.items():
        seen = []
        request = Request(path, precision, compute="SM86", library="tensorrt_rtx")
        made = process.build(request, progress=lambda share, what, seen=seen: seen.append((share, what)))
        assert made.flags == ("STRONGLY_TYPED", "NO_TF32", "SM86") and made.compute == "SM86"
        assert made.size_bytes == len(made.plan) > 1000 and made.onnx_sha256 == request.onnx_sha256
        assert any("stay FP32" in text for text in made.warnings) == (precision == "int8")
        assert seen and all(0 <= share <= 1 for share, _ in seen)


@needs_tensorrt
def test_real_library_is_recognized_by_its_features(tmp_path):
    trt = library.load("tensorrt_rtx")
    assert library.has_typing(trt) and not library.has_flags(trt)
    assert library.order(trt) == ("int8-fp16", "fp16", "int8", "fp32")
    with pytest.raises(InputError, match="cannot build for SM87 "):
        building.build(trt, Request(one_conv(tmp_path / "m.onnx").read_bytes(), "fp32", compute="SM87"))


@needs_tensorrt
def test_real_builder_receives_the_settings(tmp_path):
    trt = library.load("tensorrt_rtx")
    config = trt.Builder(library.log_of(trt)).create_builder_config()
    assert config.get_flag(trt.BuilderFlag.TF32)  # on by default: our builder must switch it off
    made, timing = building.build(
        trt,
        Request(one_conv(tmp_path / "m.onnx").read_bytes(), "fp32", compute="SM86"),
        pools={"WORKSPACE": 1 << 28, "NONE": 1},
    )
    assert made.workspace_bytes == 1 << 28 and timing == b""


@needs_tensorrt
def test_nvidias_parser_names_its_layers_like_the_nodes(tmp_path):
    """`fp32_nodes` relies on these names. The parser here is that of TensorRT for RTX."""
    trt = library.load("tensorrt_rtx")
    log = library.log_of(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    data = quantized(tmp_path / "m.onnx", 19, np.float16).read_bytes()
    assert trt.OnnxParser(network, log).parse(data)
    nodes = onnx_file.names(data)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    assert nodes == {building._node_of(layer.name, nodes) for layer in layers} - {None}
    halves = [layer.name for layer in layers if building._has_type(layer, trt.DataType.HALF)]
    assert "/model.0/conv/Conv" in halves and "/model.0/act/Mul" in halves  # the parser exposes the types


@needs_tensorrt
def test_refused_zero_point_names_the_node(tmp_path):
    path = quantized(tmp_path / "m.onnx")
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "z":
            tensor.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), "z"))
    onnx.save(model, path)
    with pytest.raises(GateError) as refused:
        process.build(Request(path, "int8", compute="SM86", library="tensorrt_rtx"))
    message = str(refused.value)
    assert "QuantizeLinear /model.0/conv/Q (layer model.0.conv): " in message
    assert "only symmetric quantization" in message and message.endswith("precision=fp16)")


def test_nodes_and_opset_are_read_without_the_onnx_package(tmp_path):
    for path, opset in ((one_conv(tmp_path / "a.onnx"), 17), (quantized(tmp_path / "b.onnx", 21), 21)):
        data = path.read_bytes()
        model = onnx.load_from_string(data)
        assert onnx_file.opset(data) == opset
        assert [onnx_file.node(data, i) for i in range(len(model.graph.node) + 1)] == [
            *((node.name, node.op_type) for node in model.graph.node),
            None,
        ]
        # A file truncated at any byte raises no error.
        for end in range(len(data)):
            onnx_file.node(data[:end], 1)
            onnx_file.opset(data[:end])
        assert onnx_file.node(data[:40], 1) is None


def test_a_file_with_large_tensors_and_other_domains_is_read(tmp_path):
    path = one_conv(tmp_path / "m.onnx", activation="Nonsense", domain="nowhere")
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((256, 1024), np.float32), "big"))
    data = model.SerializeToString()
    assert onnx_file.opset(data) == 17
    assert onnx_file.node(data, 1) == ("/model.1/cv2.0/cv2.0.1/act/Act", "Nonsense")


def test_the_module_imports_neither_torch_nor_onnx():
    heavy = {"torch", "onnx", "ultralytics"}
    code = f"import sys, edgeprune.exporting.tensorrt; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
