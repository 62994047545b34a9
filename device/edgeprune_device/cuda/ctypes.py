"""NVIDIA's libcudart through ctypes: needs no installation, works with CUDA runtimes 11.4 (JetPack 5) to 13.

The library is searched under the names that the system's loader knows, in CUDA's folders under /usr/local, and in
NVIDIA's wheels beside this Python's packages; the first one that finds a GPU is used. The environment variable
EDGEPRUNE_LIBCUDART names a file instead (and a libcuda.so.1 in the same folder is then used with it).
"""

from __future__ import annotations

import ctypes
import glob
import os
import sys
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any, Dict, List, Optional, Tuple

from edgeprune_device.cuda import Cuda
from edgeprune_device.cuda._failure import CudaFailure
from edgeprune_device.cuda._runtime_api import RuntimeApi
from edgeprune_device.errors import EdgepruneError, RuntimeUnavailable

__all__ = ["RANK", "available", "open"]

RANK = 10

# Newest first: if an older driver refuses one, the next is tried.
_SONAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
_FOLDERS = ("/usr/local/cuda*/lib64", "/usr/local/cuda*/targets/*/lib")
_WHEELS = "nvidia/*/lib"  # nvidia/cuda_runtime/lib for CUDA 11 and 12, nvidia/cu13/lib

_OUTPUTS: Dict[Any, Any] = {POINTER(kind): kind for kind in (c_float, c_int, c_size_t, c_void_p)}
# Each returns a cudaError_t; a pointer receives a result.
SIGNATURES: Dict[str, Tuple[Any, ...]] = {
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaDriverGetVersion": (POINTER(c_int),),
    "cudaEventCreate": (POINTER(c_void_p),),
    "cudaEventDestroy": (c_void_p,),
    "cudaEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaFree": (c_void_p,),
    "cudaFreeHost": (c_void_p,),
    "cudaGetDeviceCount": (POINTER(c_int),),
    "cudaGetLastError": (),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphExecDestroy": (c_void_p,),
    # cudaGraphInstantiate is not used, because CUDA 12 changed its arguments.
    "cudaGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cudaMalloc": (POINTER(c_void_p), c_size_t),
    "cudaMemGetInfo": (POINTER(c_size_t), POINTER(c_size_t)),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaRuntimeGetVersion": (POINTER(c_int),),
    "cudaSetDevice": (c_int,),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cudaStreamSynchronize": (c_void_p,),
}


def candidates() -> List[str]:
    """Possible files of libcudart, best first: names for the system's loader, and files."""
    named = os.environ.get("EDGEPRUNE_LIBCUDART")
    if named:
        return [named]
    folders = [*_FOLDERS, *(os.path.join(glob.escape(path), _WHEELS) for path in sys.path)]
    files = (path for folder in folders for soname in _SONAMES for path in sorted(glob.glob(f"{folder}/{soname}")))
    return [*_SONAMES, *{os.path.realpath(path): path for path in files}.values()]


def available() -> Optional[str]:
    """None if a libcudart finds a GPU, else the reason."""
    try:
        _find()
    except EdgepruneError as error:
        return str(error)
    return None


def open() -> Cuda:
    """Open device 0 with libcudart.

    Raises:
        RuntimeUnavailable: libcudart, the driver or the GPU is missing.
    """
    return _find().use()


def _find() -> CtypesCuda:
    """Find the first libcudart that finds a GPU, or raise the first error."""
    first_error: Optional[EdgepruneError] = None
    for candidate in candidates():
        try:
            library = ctypes.CDLL(candidate)
        except OSError as error:
            if os.path.exists(candidate) or candidate == os.environ.get("EDGEPRUNE_LIBCUDART"):
                first_error = first_error or RuntimeUnavailable(f"{candidate}: {error}")
            continue
        try:
            return CtypesCuda(library)
        except EdgepruneError as error:
            first_error = first_error or error
    raise first_error or RuntimeUnavailable(
        "libcudart: not found; install CUDA's runtime (pip install nvidia-cuda-runtime-cu12, on a Jetson apt install "
        "cuda-cudart-…), or name the file in EDGEPRUNE_LIBCUDART"
    )


class CtypesCuda(RuntimeApi):
    """CUDA's runtime API through ctypes.

    Args:
        library: The loaded libcudart.

    Raises:
        RuntimeUnavailable: The library is too old, or the driver or the GPU is missing.
    """

    name = "ctypes"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for function, types in SIGNATURES.items():
            try:
                getattr(library, function).argtypes = types
            except AttributeError:
                raise RuntimeUnavailable(f"{library._name} has no {function}; CUDA 11.4 or newer is needed") from None
            getattr(library, function).restype = c_int
        for words in (library.cudaGetErrorName, library.cudaGetErrorString):
            words.argtypes, words.restype = [c_int], c_char_p
        super().__init__("libcudart")

    def _try(self, function: str, *arguments: Any) -> Tuple[int, Any]:
        given = iter(arguments)
        passed: List[Any] = []
        returned: List[Any] = []
        for kind in SIGNATURES[function]:
            if kind in _OUTPUTS:
                returned.append(_OUTPUTS[kind]())
                passed.append(ctypes.byref(returned[-1]))
            else:
                passed.append(next(given))
        code = getattr(self._library, function)(*passed)
        values = [value.value for value in returned]
        return code, values[0] if len(values) == 1 else tuple(values)

    def _spell(self, code: int) -> Tuple[str, str]:
        return self._library.cudaGetErrorName(code).decode(), self._library.cudaGetErrorString(code).decode()

    def _device_name(self) -> str:
        beside = os.path.join(os.path.dirname(self._library._name), "libcuda.so.1")
        driver = ctypes.CDLL(beside if os.path.exists(beside) else "libcuda.so.1")
        driver.cuDeviceGetName.argtypes, driver.cuDeviceGetName.restype = [c_char_p, c_int, c_int], c_int
        name = ctypes.create_string_buffer(256)
        code = driver.cuDeviceGetName(name, len(name), 0)
        if code:
            raise CudaFailure("cuDeviceGetName", code, *self._spell(code))
        return name.value.decode()
