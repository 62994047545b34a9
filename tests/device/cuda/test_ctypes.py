"""Tests of the search for libcudart, and of the real one if installed."""

import ctypes
import os
import sys
from pathlib import Path

import pytest
from edgeprune_device import cuda
from edgeprune_device.cuda import _failure
from edgeprune_device.cuda import ctypes as backend
from edgeprune_device.errors import RuntimeUnavailable
from fakes.cudart import compile_cudart

HEADERS = sorted(Path("/usr/local").glob("cuda*/include/cuda_runtime_api.h"))


# ---- the search for libcudart ----


def test_libcudart_is_searched_on_a_jetson_and_in_wheels(tmp_path, monkeypatch):
    monkeypatch.delenv("EDGEPRUNE_LIBCUDART", raising=False)
    for path in (
        "usr/local/cuda-12.6/lib64/libcudart.so.12",
        "usr/local/cuda-11.4/targets/aarch64-linux/lib/libcudart.so.11.0",
        "site [packages]/nvidia/cuda_runtime/lib/libcudart.so.12",
        "site [packages]/nvidia/cu13/lib/libcudart.so.13",
    ):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    (tmp_path / "usr/local/cuda").symlink_to("cuda-12.6")
    monkeypatch.setattr(backend, "_FOLDERS", tuple(f"{tmp_path}{folder}" for folder in backend._FOLDERS))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site [packages]")])
    candidates = backend.candidates()
    assert candidates[:3] == ["libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"]
    assert [os.path.relpath(os.path.realpath(path), str(tmp_path)) for path in candidates[3:]] == [
        "usr/local/cuda-12.6/lib64/libcudart.so.12",
        "usr/local/cuda-11.4/targets/aarch64-linux/lib/libcudart.so.11.0",
        "site [packages]/nvidia/cu13/lib/libcudart.so.13",
        "site [packages]/nvidia/cuda_runtime/lib/libcudart.so.12",
    ]


def test_first_libcudart_that_finds_a_gpu_is_used(fake_cudart, tmp_path, monkeypatch):
    (tmp_path / "libcudart.so.13").write_bytes(b"for another machine")
    monkeypatch.setattr(
        backend,
        "candidates",
        lambda: ["libcudart.so.none", str(tmp_path / "libcudart.so.13"), str(fake_cudart.path)],
    )
    with cuda.open("ctypes") as gpu:
        assert gpu.device().name == "Fake Orin"
    fake_cudart.devices(0)
    with pytest.raises(RuntimeUnavailable, match=r"libcudart\.so\.13: .*(invalid ELF header|file too short)"):
        cuda.open("ctypes")


def test_named_library_must_load(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_LIBCUDART", str(tmp_path / "none.so"))
    with pytest.raises(RuntimeUnavailable, match=r"none\.so: cannot open shared object file"):
        cuda.open("ctypes")


def test_error_of_a_too_old_cuda_names_the_missing_function(tmp_path, monkeypatch, cudart_build):
    options = "-DcudaGraphInstantiateWithFlags=cudaGraphInstantiateOfOld"
    monkeypatch.setenv("EDGEPRUNE_LIBCUDART", str(compile_cudart(tmp_path, options)))
    with pytest.raises(
        RuntimeUnavailable, match=r"has no cudaGraphInstantiateWithFlags; CUDA 11\.4 or newer is needed"
    ):
        cuda.open("ctypes")


# ---- the real library, if installed ----


def real_libcudarts():
    files = [Path(path) for path in backend.candidates() if os.path.isabs(path)]
    return files or [pytest.param(None, marks=pytest.mark.skip(reason="no real libcudart on this machine"))]


@pytest.mark.parametrize("path", real_libcudarts(), ids=str)
def test_real_libcudart_has_every_function_and_the_same_messages(path):
    library = ctypes.CDLL(str(path))
    for function in (*backend.SIGNATURES, "cudaGetErrorName", "cudaGetErrorString"):
        assert getattr(library, function)
    library.cudaGetErrorString.restype = ctypes.c_char_p
    assert {code: library.cudaGetErrorString(code).decode() for code in _failure.USUAL} == {
        code: words for code, (words, _) in _failure.USUAL.items()
    }


@pytest.mark.parametrize("path", real_libcudarts(), ids=str)
def test_real_libcudart_without_a_driver_is_refused(path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_LIBCUDART", str(path))
    if backend.available() is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeUnavailable, match=r"^libcudart 1\d\.\d+(: no NVIDIA driver found|, driver .*)"):
        cuda.open("ctypes")


@pytest.mark.skipif(not HEADERS, reason="no CUDA headers on this machine")
def test_fake_libcudart_has_the_signatures_of_nvidia(tmp_path, cudart_build):
    for header in HEADERS:
        folder = tmp_path / header.parts[3]
        folder.mkdir()
        compile_cudart(folder, "-DREAL_HEADERS", "-Wno-enum-conversion", f"-I{header.parent}")
