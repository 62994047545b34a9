"""NVIDIA's own Python package: `cuda-python` 11.8 to 12.x, or `cuda-bindings`, into which 12.8 and 13 moved it.

It has no wheel for aarch64 with Python 3.8 (JetPack 5).
"""

from __future__ import annotations

from edgeprune_device.cuda._failure import CudaFailure
from edgeprune_device.cuda._runtime_api import RuntimeApi
from edgeprune_device.errors import EdgepruneError, RuntimeUnavailable

__all__ = ["NAME", "RANK", "available", "open"]

NAME = "cuda-python"
RANK = 30

# Which argument is an enum, and which one: the package takes no plain numbers there. Handles and pointers it takes so.
_ENUMS = {
    "cudaDeviceGetAttribute": (0, "cudaDeviceAttr"),
    "cudaMemcpyAsync": (3, "cudaMemcpyKind"),
    "cudaStreamBeginCapture": (1, "cudaStreamCaptureMode"),
}
# A result of another class is a handle, and int() gives its number.
_NUMBERS = (int, float)


def available():
    """None when the package is installed and finds a GPU, else the reason."""
    try:
        CudaPython()
    except EdgepruneError as error:
        return str(error)
    return None


def open() -> CudaPython:
    """Open device 0 by the package cuda-python.

    Raises:
        RuntimeUnavailable: The package is not installed, or there is no driver or no GPU.
    """
    return CudaPython().use()


class CudaPython(RuntimeApi):
    """CUDA's runtime API by the package cuda-python."""

    name = NAME

    def __init__(self) -> None:
        try:
            self._runtime = _import()
        except ImportError as error:
            raise RuntimeUnavailable(f"cuda-python cannot be imported ({error}): pip install cuda-python") from error
        try:
            super().__init__("CUDA")
        except RuntimeError as error:  # up to 12.8 the package raises it when there is no libcuda.so.1
            raise RuntimeUnavailable(f"cuda-python finds no NVIDIA driver ({error})") from error

    def _try(self, function, *arguments):
        position, enum = _ENUMS.get(function, (None, None))
        if enum:
            arguments = list(arguments)
            arguments[position] = getattr(self._runtime, enum)(arguments[position])
        code, *returned = getattr(self._runtime, function)(*arguments)
        if int(code):
            return int(code), None
        values = [value if isinstance(value, _NUMBERS) else int(value) for value in returned]
        return 0, values[0] if len(values) == 1 else tuple(values)

    def _spell(self, code):
        error = self._runtime.cudaError_t(code)
        return error.name, self._runtime.cudaGetErrorString(error)[1].decode()

    def _device_name(self):
        code, properties = self._runtime.cudaGetDeviceProperties(0)
        if int(code):
            self._try("cudaGetLastError")
            raise CudaFailure("cudaGetDeviceProperties", int(code), *self._spell(int(code)))
        return properties.name.split(b"\0")[0].decode()


def _import():
    try:
        from cuda.bindings import runtime
    except ImportError:
        from cuda import cudart as runtime
    return runtime
