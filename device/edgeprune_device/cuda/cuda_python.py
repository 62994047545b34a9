"""NVIDIA's own Python package: `cuda-python` 11.8 to 12.x, or its successor since 12.8, `cuda-bindings`.

It has no wheel for aarch64 with Python 3.8 (JetPack 5).
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

from edgeprune_device.cuda import Cuda
from edgeprune_device.cuda._failure import CudaFailure
from edgeprune_device.cuda._runtime_api import RuntimeApi
from edgeprune_device.errors import EdgepruneError, RuntimeUnavailable

__all__ = ["RANK", "available", "open"]

RANK = 30

# {function: (position, enum)}: there the package accepts no plain numbers, unlike for handles and pointers.
_ENUMS = {
    "cudaDeviceGetAttribute": (0, "cudaDeviceAttr"),
    "cudaMemcpyAsync": (3, "cudaMemcpyKind"),
    "cudaStreamBeginCapture": (1, "cudaStreamCaptureMode"),
}
# A result of any other class is a handle, which int() converts to its number.
_NUMBERS = (int, float)


def available() -> Optional[str]:
    """None if the package is installed and finds a GPU, else the reason."""
    try:
        CudaPython()
    except EdgepruneError as error:
        return str(error)
    return None


def open() -> Cuda:
    """Open device 0 with the package cuda-python.

    Raises:
        RuntimeUnavailable: The package is not installed, or the driver or the GPU is missing.
    """
    return CudaPython().use()


class CudaPython(RuntimeApi):
    """CUDA's runtime API through the package cuda-python."""

    name = "cuda-python"

    def __init__(self) -> None:
        try:
            self._runtime = _import()
        except ImportError as error:
            raise RuntimeUnavailable(
                f"cuda-python: cannot be imported ({error}); run pip install cuda-python"
            ) from error
        try:
            super().__init__("CUDA")
        except RuntimeError as error:  # raised by the package up to 12.8 if libcuda.so.1 is missing
            raise RuntimeUnavailable(f"cuda-python: no NVIDIA driver found ({error}); install the driver") from error

    def _try(self, function: str, *arguments: Any) -> Tuple[int, Any]:
        passed = list(arguments)
        if function in _ENUMS:
            position, enum = _ENUMS[function]
            passed[position] = getattr(self._runtime, enum)(passed[position])
        code, *returned = getattr(self._runtime, function)(*passed)
        if int(code):
            return int(code), None
        values = [value if isinstance(value, _NUMBERS) else int(value) for value in returned]
        return 0, values[0] if len(values) == 1 else tuple(values)

    def _spell(self, code: int) -> Tuple[str, str]:
        error = self._runtime.cudaError_t(code)
        return error.name, self._runtime.cudaGetErrorString(error)[1].decode()

    def _device_name(self) -> str:
        code, properties = self._runtime.cudaGetDeviceProperties(0)
        if int(code):
            self._try("cudaGetLastError")
            raise CudaFailure("cudaGetDeviceProperties", int(code), *self._spell(int(code)))
        return str(properties.name.split(b"\0")[0].decode())


def _import() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError:
        from cuda import cudart as runtime
    return runtime
