"""Tests of the builder in a separate process with the fakes of TensorRT: its errors and its end."""

import signal
import subprocess
import time

import pytest
from edgeprune_device import option
from edgeprune_device.engine import Request, process
from edgeprune_device.errors import DeviceError, GateError, InputError
from fakes import fake_tensorrt as fake
from fakes import models


def test_errors_of_the_process_are_raised_in_the_caller(fake_tensorrt, tmp_path, monkeypatch):
    fake_tensorrt("10.3.0")
    with pytest.raises(GateError, match=r"the fp32 model: refused by TensorRT 10\.3\.0"):
        process.build(Request(b"nonsense", "fp32", cuda="ctypes"))
    with pytest.raises(InputError, match="no such ONNX file"):
        process.build(Request(tmp_path / "none.onnx", "fp32", cuda="ctypes"))
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "memory")
    with pytest.raises(GateError, match=r"out of memory.*workspace=256"):
        process.build(Request(models.detector(), "fp32", cuda="ctypes"))
    with pytest.raises(GateError, match=r"out of memory.*--workspace 256"), option.as_flags():
        process.build(Request(models.detector(), "fp32", cuda="ctypes"))


@pytest.mark.parametrize(
    "how, words",
    [
        ("segv", r"the engine builder crashed \(SIGSEGV\)"),
        ("kill", r"the engine builder was killed \(SIGKILL\), probably because memory ran out; .*workspace=256"),
        ("exit", "the engine builder failed \\(exit code 3\\): libfoo.so: cannot open shared object file"),
        ("hang", "the engine was not built within 2 s"),
    ],
)
def test_abnormal_end_of_the_builder_is_one_line(fake_tensorrt, monkeypatch, how, words):
    fake_tensorrt("8.6.1")
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", how)
    with pytest.raises(DeviceError, match="^the fp32 model: " + words):
        process.build(Request(models.detector(), "fp32", cuda="ctypes"), timeout_s=2 if how == "hang" else 60)


def test_crash_at_the_end_of_the_process_keeps_the_engine(fake_tensorrt, monkeypatch):
    fake_tensorrt("10.3.0")
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "late")
    assert process.build(Request(models.detector(), "fp32", cuda="ctypes")).size_bytes > 0


def test_error_of_the_gpu_is_raised_in_the_caller(fake_tensorrt, monkeypatch, tmp_path):
    fake_tensorrt("10.3.0")
    failing = tmp_path / "failing"
    failing.mkdir()
    (failing / "tensorrt.py").write_text(
        f"import ctypes, os, sys\nsys.path.append({str(fake.HERE)!r})\nimport fake_tensorrt\n"
        "ctypes.CDLL(os.environ['EDGEPRUNE_LIBCUDART']).fake_fail(b'cudaMemGetInfo', 999)\n"
        "sys.modules[__name__] = fake_tensorrt.module('10.3.0')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(failing))
    with pytest.raises(DeviceError, match=r"^cudaMemGetInfo failed: cudaErrorUnknown, unknown error$"):
        process.build(Request(models.detector(), "fp32", cuda="ctypes"))


def test_modules_in_the_current_folder_are_not_imported(fake_tensorrt, monkeypatch, tmp_path):
    fake_tensorrt("10.3.0")
    for name in ("numpy", "tensorrt", "json", "edgeprune_device"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the current folder has its own {name}')")
    monkeypatch.chdir(tmp_path)
    assert process.build(Request(models.detector(), "fp32", cuda="ctypes")).size_bytes > 0


def test_interrupt_also_ends_the_builder(fake_tensorrt, monkeypatch, tmp_path):
    fake_tensorrt("10.3.0")
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "hang")
    started = []
    start = subprocess.Popen
    monkeypatch.setattr(process.subprocess, "Popen", lambda *a, **k: started.append(start(*a, **k)) or started[-1])

    def interrupt(*_):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(2)
    try:
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            process.build(Request(models.detector(), "fp32", cuda="ctypes"))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    assert time.monotonic() - began < 30 and started[0].poll() == -signal.SIGKILL
