"""The common part of the backends that use CUDA's runtime API: the call of each operation.

A backend implements the call (`_try`), an error's name and message (`_spell`) and the device's name.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import Any, Callable, Iterator, Tuple

import numpy as np

from edgeprune_device.cuda import Capture, Cuda, Device, dotted
from edgeprune_device.cuda._failure import ABSENT, CudaFailure
from edgeprune_device.errors import DeviceError, RuntimeUnavailable

__all__ = ["RuntimeApi"]

# Values of CUDA's enums, the same in CUDA 11 to 13.
_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2
_MULTIPROCESSORS, _INTEGRATED, _CAPABILITY_MAJOR, _CAPABILITY_MINOR = 16, 18, 75, 76
_NON_BLOCKING = 1
_THREAD_LOCAL = 1  # a capture that allocations of other threads do not invalidate


class RuntimeApi(Cuda):
    """A Cuda that calls CUDA's runtime API.

    Args:
        library: Name of the library, for the description.

    Raises:
        RuntimeUnavailable: The driver or the GPU is missing.
    """

    def __init__(self, library: str) -> None:
        super().__init__()
        versions = f"{library} {dotted(self._call('cudaRuntimeGetVersion'))}"
        try:
            driver = self._call("cudaDriverGetVersion")
            if not driver:
                raise RuntimeUnavailable(f"{versions}: no NVIDIA driver found; install the driver")
            versions += f", driver {dotted(driver)}"
            self._call("cudaGetDeviceCount")
        except CudaFailure as error:
            if error.code in ABSENT:
                raise RuntimeUnavailable(f"{versions}: {error.why}") from error
            raise
        self.description = f"{self.name} on {versions}"

    def _try(self, function: str, *arguments: Any) -> Tuple[int, Any]:
        """Return (CUDA's error number, the call's results: one value, or a tuple of any length)."""
        raise NotImplementedError

    def _spell(self, code: int) -> Tuple[str, str]:
        """CUDA's name and message of an error."""
        raise NotImplementedError

    def _device_name(self) -> str:
        raise NotImplementedError

    def _call(self, function: str, *arguments: Any) -> Any:
        self._check_open()
        code, returned = self._try(function, *arguments)
        if code:
            # This clears the error, which TensorRT's next check would otherwise take for its own.
            self._try("cudaGetLastError")
            raise CudaFailure(function, code, *self._spell(code))
        return returned

    def use(self) -> RuntimeApi:
        """Select the GPU for this thread. The first use creates its context, which takes memory and a moment."""
        self._call("cudaSetDevice", 0)
        return self

    def device(self) -> Device:
        """See `Cuda.device`."""
        major, minor, integrated, multiprocessors = (
            self._call("cudaDeviceGetAttribute", attribute, 0)
            for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _INTEGRATED, _MULTIPROCESSORS)
        )
        return Device(self._device_name(), f"{major}.{minor}", bool(integrated), multiprocessors)

    def memory(self) -> Tuple[int, int]:
        """See `Cuda.memory`."""
        free, total = self._call("cudaMemGetInfo")
        return free, total

    def alloc(self, size_bytes: int) -> int:
        """See `Cuda.alloc`."""
        return self._hold("allocation", self._call("cudaMalloc", self._checked_size(size_bytes)))

    def free(self, pointer: int) -> None:
        """See `Cuda.free`."""
        self._drop("allocation", pointer)
        self._call("cudaFree", pointer)

    def _pin(self, size_bytes: int) -> Tuple[int, Callable[[], object]]:
        pointer = self._call("cudaHostAlloc", size_bytes, 0)
        # Not `_call`: this may run after close, and an error in the garbage collector cannot be handled.
        return pointer, lambda: self._try("cudaFreeHost", pointer)

    def stream(self) -> int:
        """See `Cuda.stream`."""
        return self._hold("stream", self._call("cudaStreamCreateWithFlags", _NON_BLOCKING))

    def destroy_stream(self, stream: int) -> None:
        """See `Cuda.destroy_stream`."""
        self._drop("stream", stream)
        self._call("cudaStreamDestroy", stream)

    def to_device(self, pointer: int, array: np.ndarray, stream: int) -> None:
        """See `Cuda.to_device`."""
        self._get("stream", stream)
        source = self._checked(array).ctypes.data
        self._call("cudaMemcpyAsync", pointer, source, array.nbytes, _HOST_TO_DEVICE, stream)

    def to_host(self, array: np.ndarray, pointer: int, stream: int) -> None:
        """See `Cuda.to_host`."""
        self._get("stream", stream)
        target = self._checked(array, filled=True).ctypes.data
        self._call("cudaMemcpyAsync", target, pointer, array.nbytes, _DEVICE_TO_HOST, stream)

    def synchronize(self, stream: int) -> None:
        """See `Cuda.synchronize`."""
        self._get("stream", stream)
        self._call("cudaStreamSynchronize", stream)

    def event(self) -> int:
        """See `Cuda.event`."""
        return self._hold("event", self._call("cudaEventCreate"))

    def destroy_event(self, event: int) -> None:
        """See `Cuda.destroy_event`."""
        self._drop("event", event)
        self._call("cudaEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        """See `Cuda.record`."""
        self._get("event", event)
        self._get("stream", stream)
        self._call("cudaEventRecord", event, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        """See `Cuda.elapsed_ms`."""
        self._get("event", start)
        self._get("event", end)
        return float(self._call("cudaEventElapsedTime", start, end))

    @contextmanager
    def capture(self, stream: int) -> Iterator[Capture]:
        """See `Cuda.capture`."""
        self._get("stream", stream)
        self._call("cudaStreamBeginCapture", stream, _THREAD_LOCAL)
        captured = Capture()
        try:
            yield captured
        except BaseException:
            with suppress(DeviceError):  # the block's own error is the one to raise
                self._call("cudaGraphDestroy", self._call("cudaStreamEndCapture", stream))
            raise
        template = self._call("cudaStreamEndCapture", stream)
        try:
            captured.graph = self._hold("graph", self._call("cudaGraphInstantiateWithFlags", template, 0))
        finally:
            self._call("cudaGraphDestroy", template)

    def launch(self, graph: int, stream: int) -> None:
        """See `Cuda.launch`."""
        self._get("graph", graph)
        self._get("stream", stream)
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """See `Cuda.destroy_graph`."""
        self._drop("graph", graph)
        self._call("cudaGraphExecDestroy", graph)
