"""The package pycuda: CUDA's driver API. It does not support graphs, and on aarch64 pip compiles it.

pycuda gives the message of an error, but neither its number nor its name.
"""

from __future__ import annotations

import atexit
from functools import lru_cache
from typing import Any, Callable, Optional, Tuple

import numpy as np

from edgeprune_device.cuda import Cuda, Device, dotted
from edgeprune_device.cuda._failure import ABSENT, USUAL, CudaFailure
from edgeprune_device.errors import EdgepruneError, RuntimeUnavailable

__all__ = ["RANK", "available", "open"]

RANK = 20

_NON_BLOCKING = 1


def available() -> Optional[str]:
    """None if the package is installed and finds a GPU, else the reason."""
    try:
        _driver()
    except EdgepruneError as error:
        return str(error)
    return None


def open() -> Cuda:
    """Open device 0 with pycuda.

    Raises:
        RuntimeUnavailable: The package is not installed, or the driver or the GPU is missing.
    """
    return PyCuda(_driver())


def _driver() -> Any:
    """The initialised module pycuda.driver. Raises RuntimeUnavailable if it cannot run."""
    try:
        import pycuda.driver as driver
    except ImportError as error:
        raise RuntimeUnavailable(f"pycuda: cannot be imported ({error}); run pip install pycuda") from error
    try:
        driver.init()
    except driver.Error as error:
        failure = _failure(error)
        if failure.code in ABSENT:
            raise RuntimeUnavailable(f"pycuda: {failure.why}") from error
        raise failure from error
    return driver


@lru_cache(maxsize=None)
def _primary_context(driver: Any) -> Any:
    """The device's primary context, which TensorRT uses (not that of pycuda.autoinit).

    It is kept until the process ends, as with libcudart: pycuda's destructor frees it with the wrong call, and `detach`
    leaves it current.
    """
    context = driver.Device(0).retain_primary_context()
    atexit.register(context.detach)
    return context


def _failure(error: Exception) -> CudaFailure:
    """A pycuda.driver.Error, e.g. MemoryError("cuMemAlloc failed: out of memory"), as a CudaFailure."""
    call, _, words = str(error).partition(" failed: ")
    code = next((code for code, (usual, _) in USUAL.items() if words.startswith(usual)), 0)
    return CudaFailure(call, code, f"pycuda's {type(error).__name__}", words)


class PyCuda(Cuda):
    """CUDA's driver API through pycuda, in the device's primary context.

    Args:
        driver: The module pycuda.driver.
    """

    name = "pycuda"
    graphs = False

    def __init__(self, driver: Any) -> None:
        super().__init__()
        self._driver = driver
        self._gpu = self._call(driver.Device, 0)
        self._call(self._call(_primary_context, driver).push)
        atexit.register(self.close)  # pycuda aborts the process if a context is still current at its end
        from pycuda import VERSION_TEXT

        major, minor = driver.get_version()[:2]
        version = driver.get_driver_version()
        self.description = f"pycuda {VERSION_TEXT} on CUDA {major}.{minor}, driver {dotted(version)}"

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._check_open()
        try:
            return function(*arguments)
        except self._driver.Error as error:
            raise _failure(error) from error

    def device(self) -> Device:
        """See `Cuda.device`."""
        major, minor = self._call(self._gpu.compute_capability)
        known = self._driver.device_attribute
        integrated, multiprocessors = (
            self._call(self._gpu.get_attribute, attribute)
            for attribute in (known.INTEGRATED, known.MULTIPROCESSOR_COUNT)
        )
        return Device(self._call(self._gpu.name), f"{major}.{minor}", bool(integrated), multiprocessors)

    def memory(self) -> Tuple[int, int]:
        """See `Cuda.memory`."""
        free, total = self._call(self._driver.mem_get_info)
        return free, total

    def alloc(self, size_bytes: int) -> int:
        """See `Cuda.alloc`."""
        allocation = self._call(self._driver.mem_alloc, self._checked_size(size_bytes))
        return self._hold("allocation", int(allocation), allocation)

    def free(self, pointer: int) -> None:
        """See `Cuda.free`."""
        self._call(self._drop("allocation", pointer).free)

    def _pin(self, size_bytes: int) -> Tuple[int, Callable[[], object]]:
        memory = self._call(self._driver.pagelocked_empty, size_bytes, np.uint8)
        return memory.ctypes.data, memory.base.free

    def stream(self) -> int:
        """See `Cuda.stream`."""
        stream = self._call(self._driver.Stream, _NON_BLOCKING)
        return self._hold("stream", stream.handle, stream)

    def destroy_stream(self, stream: int) -> None:
        """See `Cuda.destroy_stream`."""
        self._drop("stream", stream)  # pycuda destroys a stream without references

    def to_device(self, pointer: int, array: np.ndarray, stream: int) -> None:
        """See `Cuda.to_device`."""
        self._call(self._driver.memcpy_htod_async, pointer, self._checked(array), self._get("stream", stream))

    def to_host(self, array: np.ndarray, pointer: int, stream: int) -> None:
        """See `Cuda.to_host`."""
        array = self._checked(array, filled=True)
        self._call(self._driver.memcpy_dtoh_async, array, pointer, self._get("stream", stream))

    def synchronize(self, stream: int) -> None:
        """See `Cuda.synchronize`."""
        self._call(self._get("stream", stream).synchronize)

    def event(self) -> int:
        """See `Cuda.event`."""
        event = self._call(self._driver.Event)
        return self._hold("event", id(event), event)  # pycuda does not expose an event's handle

    def destroy_event(self, event: int) -> None:
        """See `Cuda.destroy_event`."""
        self._drop("event", event)

    def record(self, event: int, stream: int) -> None:
        """See `Cuda.record`."""
        self._call(self._get("event", event).record, self._get("stream", stream))

    def elapsed_ms(self, start: int, end: int) -> float:
        """See `Cuda.elapsed_ms`."""
        return float(self._call(self._get("event", end).time_since, self._get("event", start)))

    def close(self) -> None:
        """See `Cuda.close`; restores the previous context."""
        if not self._closed:
            super().close()
            atexit.unregister(self.close)
            self._driver.Context.pop()
