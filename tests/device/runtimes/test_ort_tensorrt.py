"""Tests of TensorRT inside ONNX Runtime with a fake front of onnxruntime: settings and folders of engines."""

import os
import stat

import pytest
from edgeprune_device import runtimes
from edgeprune_device.runtimes import RuntimeSettings
from fakes import models

from .providers import PROVIDERS

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    "precision, half, whole", [("fp32", 0, 0), ("fp16", 1, 0), ("int8", 1, 1), ("int8-fp16", 1, 1)]
)
def test_precision_is_passed_to_tensorrt(front, engines, precision, half, whole):
    settings = RuntimeSettings(precision=precision, workspace_bytes=300 * 10**6)
    with runtimes.open(models.detector(precision), "ort-tensorrt", settings) as session:
        warned = "cannot tell TensorRT which layers must stay FP32" in " ".join(session.warnings)
        assert warned == (precision != "fp32")
    (name, options), second, _ = front.asked[-1][0]
    folder = options.pop("trt_engine_cache_path")
    assert (name, second) == (PROVIDERS["ort-tensorrt"], "CUDAExecutionProvider")
    assert options == {
        "trt_fp16_enable": bool(half),
        "trt_int8_enable": bool(whole),
        "trt_max_workspace_size": 300 * 10**6,
        "trt_engine_cache_enable": True,
        "trt_timing_cache_enable": True,
    }
    assert os.path.dirname(folder) == str(engines / "onnxruntime") and os.path.isdir(folder)


def test_two_trainings_of_one_network_share_no_engine(front, engines, tmp_path):
    (tmp_path / "m.onnx").write_bytes(models.detector("int8"))
    for model in (models.detector(), models.detector("int8"), str(tmp_path / "m.onnx"), tmp_path / "m.onnx"):
        runtimes.open(model, "ort-tensorrt").close()
    folders = [options["trt_engine_cache_path"] for (_, options), *_ in (providers for providers, _ in front.asked)]
    assert folders[0] != folders[1] == folders[2] == folders[3]
    assert all(folder.endswith(f"-{onnxruntime.__version__}") for folder in folders)


@pytest.mark.parametrize("which", ["", "onnxruntime"])
def test_engines_that_others_could_change_are_not_loaded(front, engines, which):
    runtimes.open(models.detector(), "ort-tensorrt").close()
    (engines / which).chmod(0o777)
    with runtimes.open(models.detector(), "ort-tensorrt") as session:
        assert "other users may write to" in session.warnings[0] and "not cached" in session.warnings[0]
    assert not [option for option in front.asked[-1][0][0][1] if "cache" in option]


def test_folders_are_private_whatever_the_umask(front, engines):
    old = os.umask(0o002)
    try:
        with runtimes.open(models.detector(), "ort-tensorrt") as session:
            assert session.warnings == ()
    finally:
        os.umask(old)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (engines, *engines.rglob("*"))} == {0o700}


def test_engine_that_cannot_be_cached_gives_a_warning(front, engines):
    engines.write_text("a file")
    with runtimes.open(models.detector(), "ort-tensorrt") as session:
        assert "is not cached" in session.warnings[0] and "EDGEPRUNE_ENGINES" in session.warnings[0]
