"""Tests of ONNX Runtime's GPU providers without a GPU: opening and refusing, with a fake front of onnxruntime whose
sessions run on the CPU, and with the installed onnxruntime."""

import os
import sys

import numpy as np
import pytest
from edgeprune_device import runtimes
from edgeprune_device.errors import DeviceError, InputError, RuntimeUnavailable
from edgeprune_device.runtimes import RuntimeSettings, ort
from fakes import models

from .providers import PROVIDERS

onnxruntime = pytest.importorskip("onnxruntime")
X = np.random.default_rng(0).random((1, 3, models.SIZE, models.SIZE), dtype=np.float32)


@pytest.mark.parametrize("runtime", PROVIDERS)
def test_session_runs_on_the_requested_provider(front, runtime):
    assert runtimes.available()[runtime] is None
    with runtimes.open(models.detector(), "ort") as reference:
        (expected,) = reference.infer(X)
    with runtimes.open(models.detector(), runtime) as session:
        assert session.name == runtime
        assert session.description == f"onnxruntime {onnxruntime.__version__}, {PROVIDERS[runtime]}"
        assert np.array_equal(session.infer(X)[0], expected)
    providers, more = front.asked[-1]
    assert providers[-1] == ort.CPU and more == {"enable_fallback": 0}


@pytest.mark.parametrize("runtime", PROVIDERS)
def test_warning_states_that_fp32_may_be_tf32(front, monkeypatch, runtime):
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    with runtimes.open(models.detector(), runtime) as session:
        assert len(session.warnings) == 1 and "NVIDIA_TF32_OVERRIDE=0" in session.warnings[0]
    with runtimes.open(models.detector("fp16"), runtime, RuntimeSettings(precision="fp16")) as session:
        assert not any("TF32" in text for text in session.warnings)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    with runtimes.open(models.detector(), runtime) as session:
        assert session.warnings == ()


@pytest.mark.parametrize("runtime", PROVIDERS)
def test_session_never_falls_back_silently(front, runtime):
    front.loads = [name for name in PROVIDERS.values() if name != PROVIDERS[runtime]]
    # CUDA, the second choice of the TensorRT runtime, was not requested either.
    with pytest.raises(RuntimeUnavailable, match=f"{runtime}: .* does not load {PROVIDERS[runtime]} and would run on"):
        runtimes.open(models.detector(), runtime)


def test_error_of_a_provider_is_one_line(front, monkeypatch):
    def fail(*given, **more):
        raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected ;\n GPU=0")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    monkeypatch.setattr(ort, "_absent", lambda *given: None)  # no library is missing
    with pytest.raises(RuntimeUnavailable, match=r"on CUDAExecutionProvider \(CUDA failure 100: .* ; GPU=0\)$"):
        runtimes.open(models.detector(), "ort-cuda")


def test_error_names_a_missing_library(front, monkeypatch):
    front.loads = []
    words = "libcublasLt.so.13: cannot open shared object file"
    monkeypatch.setattr(ort, "_absent", lambda *given: words)
    with pytest.raises(RuntimeUnavailable, match=rf"\({words}.*\): install the versions of CUDA, cuDNN and TensorRT"):
        runtimes.open(models.detector(), "ort-cuda")
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *given, **more: 1 // 0)
    with pytest.raises(
        RuntimeUnavailable, match=rf"on TensorrtExecutionProvider \({words}\): install the versions of CUDA"
    ):
        runtimes.open(models.detector(), "ort-tensorrt")


def test_only_a_missing_library_is_reported_as_missing(tmp_path):
    (tmp_path / "capi").mkdir()
    front = type("front", (), {"__file__": str(tmp_path / "__init__.py")})
    assert ort._absent(front, "CUDAExecutionProvider") is None  # the package for CPUs has no such file
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    assert ort._absent(front, "CUDAExecutionProvider") is None


def test_failing_run_on_a_gpu_is_a_device_error(front, monkeypatch):
    def fail(*given):
        raise RuntimeError("CUDA out of memory")

    with runtimes.open(models.detector(), "ort-cuda") as session:
        monkeypatch.setattr(session._session, "run", fail)
        with pytest.raises(DeviceError, match=r"failed while running the model \(CUDA out of memory\)"):
            session.infer(X)
    with runtimes.open(models.detector(), "ort") as session:
        monkeypatch.setattr(session._session, "run", fail)
        with pytest.raises(InputError, match="failed while running the model"):
            session.infer(X)


def test_auto_selects_no_gpu_provider(front, monkeypatch):
    for name in ("trt", "rtx"):
        monkeypatch.setattr(runtimes._module(name), "available", lambda: "no GPU")
    assert runtimes.choose("auto") == "ort"
    for runtime in PROVIDERS:
        assert runtimes.order(runtime, "auto", int8_for_cpu=True)[0] == "fp32"
        assert runtimes.order(runtime, "int8") == ("int8",)


@pytest.mark.parametrize("runtime", PROVIDERS)
def test_missing_onnxruntime_or_provider_gives_a_reason(front, monkeypatch, runtime):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [ort.CPU])
    with pytest.raises(
        RuntimeUnavailable, match=f"is installed without {PROVIDERS[runtime]}; install onnxruntime-gpu instead of"
    ):
        runtimes.open(models.detector(), runtime)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert runtimes.available()[runtime].startswith("onnxruntime is not installed; install onnxruntime-gpu")


@pytest.mark.parametrize("runtime", ["ort", *PROVIDERS])
def test_broken_onnxruntime_is_one_line(monkeypatch, tmp_path, runtime):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('numpy.core.multiarray failed to import')")
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RuntimeUnavailable, match=r"onnxruntime cannot be loaded \(numpy"):
        runtimes.open(models.detector(), runtime)


@pytest.mark.parametrize("runtime", PROVIDERS)
def test_real_onnxruntime_without_a_gpu_is_refused(runtime, engines):
    """The package for CPUs lacks the provider; with onnxruntime-gpu its library does not load."""
    built_in = PROVIDERS[runtime] in onnxruntime.get_available_providers()
    if os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/nvhost-gpu"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeUnavailable) as caught:
        runtimes.open(models.detector(), runtime)
    words = (
        ["cannot open shared object file", "CUDA", "cannot be loaded"]
        if built_in
        else ["without " + PROVIDERS[runtime]]
    )
    assert any(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
