"""Comparison of the fake of cuda-python with the real package, if installed."""

import ctypes
import importlib
import inspect
import re
import sys

import pytest
from edgeprune_device import cuda
from edgeprune_device.cuda import ctypes as backend
from edgeprune_device.errors import RuntimeUnavailable
from fakes import cuda_bindings

from .signatures import parameters


def test_old_cuda_python_without_a_driver_is_refused(fake_cudart, monkeypatch):
    cuda_bindings.install(monkeypatch, fake_cudart.library, "cuda.cudart")

    def none():
        raise RuntimeError("Failed to dlopen libcuda.so.1")  # raised by every function up to 12.8

    monkeypatch.setattr(sys.modules["cuda.cudart"], "cudaDriverGetVersion", none)
    with pytest.raises(RuntimeUnavailable, match="no NVIDIA driver found"):
        cuda.open("cuda-python")


def real_cuda_python():
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return pytest.skip("cuda-python is not installed")


def test_fake_cuda_python_matches_the_real_one(fake_cudart):
    real = real_cuda_python()
    fake = cuda_bindings.functions(fake_cudart.library)
    assert set(backend.SIGNATURES) < set(fake)
    for name, function in fake.items():
        signature = getattr(real, name).__doc__.splitlines()[0]
        assert parameters(signature) == list(inspect.signature(function).parameters), name
    for enum in cuda_bindings.ENUMS:
        for member in enum:
            assert int(getattr(getattr(real, enum.__name__), member.name)) == member
    assert isinstance(real.cudaDeviceProp().name, bytes) and int(real.cudaStream_t(5)) == 5


def test_real_cuda_python_accepts_the_arguments(monkeypatch):
    """Without a driver every call fails, but invalid arguments would fail in another way."""
    real = real_cuda_python()
    from edgeprune_device.cuda.cuda_python import CudaPython

    if cuda.available()["cuda-python"] is None:
        pytest.skip("this machine has a GPU")
    gpu = CudaPython.__new__(CudaPython)
    cuda.Cuda.__init__(gpu)
    gpu._runtime = real
    handles = {ctypes.c_void_p: 5, ctypes.c_int: 1, ctypes.c_size_t: 6, ctypes.c_uint: 0, ctypes.c_ulonglong: 0}
    for function, kinds in backend.SIGNATURES.items():
        arguments = [handles[kind] for kind in kinds if kind in handles]
        if function == "cudaDeviceGetAttribute":
            arguments = [18, 0]
        try:
            code, _ = gpu._try(function, *arguments)
            assert code in (0, 35), function
        except RuntimeError as error:  # up to 12.8
            assert re.search("libcuda|not found", str(error)), function
    with pytest.raises(RuntimeUnavailable, match="no NVIDIA driver"):
        cuda.open("cuda-python")
