"""OpenVINO on the CPU; the accuracy of trained networks on it: tests/host/quantize/test_openvino.py."""

import json
import os
import subprocess

import numpy as np
import pytest
from edgeprune_device import interpreter, runtimes
from edgeprune_device.errors import InputError, RuntimeUnavailable
from edgeprune_device.runtimes import RuntimeSettings
from edgeprune_device.runtimes import openvino as ours

X = np.zeros((1, 3, 64, 64), np.float32)
ONE = RuntimeSettings(1)
needs_openvino = pytest.mark.skipif(ours.available() is not None, reason="needs openvino: pip install openvino")

#: Opens a model and runs it in a fresh process, which writes down what it opens for writing, starts or connects to.
QUIET = """
import json, sys
seen = []
def hook(event, args):
    if event.startswith(("socket.", "subprocess.", "os.posix_spawn", "os.mkdir", "os.rename")):
        seen.append([event, repr(args)])
    elif event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        seen.append([event, repr(args)])
sys.addaudithook(hook)
import numpy as np
from edgeprune_device import runtimes
from edgeprune_device.runtimes import RuntimeSettings
with runtimes.open(sys.argv[1], "openvino", RuntimeSettings(1)) as session:
    session.infer(np.zeros((1, 3, 64, 64), np.float32))
print(json.dumps([seen, [name for name in sys.modules if "telemetry" in name or name == "openvino.tools.ovc"]]))
"""


@needs_openvino
def test_it_runs_from_bytes_and_path(tiny_onnx, tmp_path):
    (tmp_path / "a.onnx").write_bytes(tiny_onnx)
    for model in (tiny_onnx, tmp_path / "a.onnx", str(tmp_path / "a.onnx")):
        with runtimes.open(model, "openvino", ONE) as session:
            assert (session.name, session.input_shape, session.spinning) == ("openvino", (1, 3, 64, 64), None)
            assert session.description.startswith("openvino 20") and session.description.endswith(", CPU, 1 thread")
            (dark,) = session.infer(X)
            (bright,) = session.infer((X + 1).astype(np.float16))
        assert dark.shape == (1, 6, 84) and dark.dtype == np.float32
        assert dark[0, 4, 0] == 0 and bright[0, 4, 0] == pytest.approx(0.9)


@needs_openvino
def test_inputs_of_any_memory_layout_and_results_that_stay(tiny_onnx):
    with runtimes.open(tiny_onnx, "openvino", ONE) as session:
        (first,) = session.infer(np.asfortranarray(X + 1))
        kept = first.copy()
        session.infer(X)
        assert np.array_equal(first, kept)


@needs_openvino
def test_threads_reach_the_library(tiny_onnx):
    for threads, said in ((1, "1 thread"), (2, "2 threads"), (None, "default threads")):
        with runtimes.open(tiny_onnx, "openvino", RuntimeSettings(threads)) as session:
            compiled = session._request.get_compiled_model()
            assert session.description.endswith(f", CPU, {said}")
            assert threads is None or compiled.get_property("INFERENCE_NUM_THREADS") == threads
            assert compiled.get_property("INFERENCE_PRECISION_HINT").to_dtype() == np.float32
            assert compiled.get_property("ENABLE_CPU_PINNING") is False


@needs_openvino
def test_a_closed_session_raises_an_error_that_names_the_cause(tiny_onnx):
    session = runtimes.open(tiny_onnx, "openvino", ONE)
    session.close()
    session.close()
    with pytest.raises(InputError, match="closed"):
        session.infer(X)


@needs_openvino
@pytest.mark.parametrize("model", [b"", b"not onnx", b"\0" * 100])
def test_a_damaged_model_is_one_line(model, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(model)
    with pytest.raises(InputError, match=r"bad\.onnx: cannot be loaded by openvino") as caught:
        runtimes.open(tmp_path / "bad.onnx", "openvino")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="the model: cannot be loaded by openvino"):
        runtimes.open(model, "openvino")


@needs_openvino
def test_it_sends_nothing_and_writes_nothing(tiny_onnx, tmp_path):
    (tmp_path / "a.onnx").write_bytes(tiny_onnx)
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        interpreter.command(QUIET, str(tmp_path / "a.onnx"), flags=("-B",)), cwd=str(tmp_path / "home"), check=True,
        stdout=subprocess.PIPE, env={**os.environ, "HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert json.loads(done.stdout.decode()) == [[], []]
    assert not list((tmp_path / "home").iterdir())


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(ours.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeUnavailable, match="runtime openvino: openvino is not installed; pip install openvino"):
        runtimes.choose("openvino")
