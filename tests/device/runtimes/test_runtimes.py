import re
import sys

import numpy as np
import pytest
from edgeprune_device import runtimes
from edgeprune_device.errors import InputError, RuntimeUnavailable
from edgeprune_device.runtimes import RuntimeSettings
from fakes import hostile


def test_names_and_choice():
    assert [name for name in runtimes.names() if name in ("trt", "rtx", "ort", "null")] == ["trt", "rtx", "ort", "null"]
    assert runtimes.available()["null"] is None
    with pytest.raises(RuntimeUnavailable, match=r"unknown runtime \(found 'tpu', expected auto, trt, rtx, .*null, "):
        runtimes.choose("tpu")


def test_without_onnxruntime_auto_names_the_package_to_install(monkeypatch):
    for name in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeUnavailable, match="pip install onnxruntime"):
        runtimes.choose("auto")
    with pytest.raises(RuntimeUnavailable, match="pip install onnxruntime"):
        runtimes.open(b"", "ort")


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 3, 64), (2, 3, 64, 64)])
@pytest.mark.parametrize("runtime", ["ort", "openvino", "null"])
def test_another_shape_is_refused(tiny_onnx, runtime, shape):
    if runtimes.available()[runtime]:
        pytest.skip(runtimes.available()[runtime])
    settings = RuntimeSettings(shapes=((1, 3, 64, 64), [(1, 6, 84)]))
    wrong = pytest.raises(InputError, match="input: wrong shape")
    with runtimes.open(tiny_onnx, runtime, settings) as session, wrong:
        session.infer(np.zeros(shape, np.float32))


def test_bad_use_is_refused(tiny_onnx):
    with pytest.raises(InputError, match="no such model file"):
        runtimes.open("none.onnx", "null")
    with pytest.raises(InputError, match="at least 1"):
        runtimes.open(tiny_onnx, settings=RuntimeSettings(threads=0))
    with pytest.raises(InputError, match="input and output shapes missing"):
        runtimes.open(tiny_onnx, "null")


@pytest.mark.parametrize("name", runtimes.names())
@pytest.mark.parametrize("model", [hostile.reads_a_file(), hostile.brings_an_engine()])
def test_model_that_loads_other_files_reaches_no_runtime(name, model, tmp_path, monkeypatch):
    monkeypatch.setattr(runtimes, "_module", lambda name: pytest.fail("a runtime was called"))
    (tmp_path / "m.onnx").write_bytes(model)
    for given, what in ((model, "the model"), (tmp_path / "m.onnx", str(tmp_path / "m.onnx"))):
        with pytest.raises(
            InputError, match=f"^{re.escape(what)}: the (tensor bias|node /engine) .*; export the model"
        ):
            runtimes.open(given, name)
