"""The GPU's memory, streams, events and graphs: `open() -> Cuda`, whichever library does it.

Adding a backend is adding one file here (a name that starts with "_" is not a backend). A backend module has

    NAME: str                   the value of `--cuda`
    RANK: int                   for "auto", highest first
    available() -> str | None   None when it finds a GPU here, else the reason in a few words
    open() -> Cuda

and imports its library inside these functions only. The package does not depend on models or TensorRT.
"""

from __future__ import annotations

import ctypes
import importlib
import pkgutil
import weakref
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np

from edgeprune_device.errors import DeviceError, EdgepruneError, InputError, RuntimeUnavailable

__all__ = ["Capture", "Cuda", "Device", "available", "names", "open"]


@dataclass(frozen=True)
class Device:
    """A GPU, e.g. `Device(name="Orin", sm="8.7", integrated=True, multiprocessors=16)`.

    Attributes:
        name: Name of the GPU.
        sm: Compute capability.
        integrated: Whether it shares the board's memory.
        multiprocessors: Number of multiprocessors; it distinguishes boards whose GPUs have one name, as the Orin
            family's may.
    """

    name: str
    sm: str
    integrated: bool
    multiprocessors: int


class Capture:
    """The captured graph of a `Cuda.capture` block.

    Attributes:
        graph: The graph's handle; None inside the block.
    """

    graph: Optional[int] = None


class Cuda:
    """Device 0 of this machine: memory, streams, events, graphs. Handles and pointers are plain ints.

    Use it from the thread that opened it. It works in the device's primary context, as TensorRT does.

    Attributes:
        name: Name of the backend, e.g. "ctypes".
        description: Text for reports, e.g. "ctypes on libcudart 12.6, driver 12.6".
        graphs: Whether `capture` works with this backend.

    Raises:
        DeviceError: Any call that the driver refuses.
        InputError: A handle was not made here, or is gone already.
    """

    name: str = ""
    description: str = ""
    graphs: bool = True

    def __init__(self) -> None:
        # The live objects, by kind: {handle: the object that the backend needs to free it}.
        self._held: Dict[str, dict] = {kind: {} for kind in ("allocation", "pinned array", "stream", "event", "graph")}
        self._closed = False

    def device(self) -> Device:
        """The GPU."""
        raise NotImplementedError

    def memory(self) -> Tuple[int, int]:
        """(free, total) memory, in bytes. On an integrated GPU both are the board's."""
        raise NotImplementedError

    def alloc(self, size_bytes: int) -> int:
        """Allocate device memory, uninitialised, and return its pointer.

        Raises:
            InputError: `size_bytes` is less than 1.
        """
        raise NotImplementedError

    def free(self, pointer: int) -> None:
        """Free memory that `alloc` returned."""
        raise NotImplementedError

    def pinned(self, shape, dtype) -> np.ndarray:
        """A page-locked host array of zeros.

        It is freed with its last view, or by `unpin`; `close` does not free it.
        """
        size_bytes = self._checked_size(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        pointer, release = self._pin(size_bytes)
        ctypes.memset(pointer, 0, size_bytes)
        # Every view of the array holds this buffer, and the memory goes when the buffer goes.
        buffer = (ctypes.c_ubyte * size_bytes).from_address(pointer)
        finalizer = weakref.finalize(buffer, self._unpin, pointer, release)
        finalizer.atexit = False  # the process's end frees it, and something may still look at it until then
        self._hold("pinned array", pointer, finalizer)
        return np.ndarray(shape, dtype, buffer=buffer)

    def _pin(self, size_bytes: int) -> Tuple[int, Callable[[], object]]:
        """(pointer to page-locked memory, the function that frees it and never raises)."""
        raise NotImplementedError

    def _unpin(self, pointer: int, release: Callable[[], object]) -> None:
        del self._held["pinned array"][pointer]
        release()

    def unpin(self, array: np.ndarray) -> None:
        """Free a pinned array now; neither it nor a view of it may be used afterwards."""
        self._get("pinned array", array.ctypes.data)()

    def stream(self) -> int:
        """Make a stream that does not wait for the default stream."""
        raise NotImplementedError

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""
        raise NotImplementedError

    def to_device(self, pointer: int, array: np.ndarray, stream: int) -> None:
        """Copy a C-contiguous array to device memory, asynchronously: `array` must live until the copy is done."""
        raise NotImplementedError

    def to_host(self, array: np.ndarray, pointer: int, stream: int) -> None:
        """Fill a C-contiguous array from device memory, asynchronously: it is filled after `synchronize`."""
        raise NotImplementedError

    def synchronize(self, stream: int) -> None:
        """Wait until the stream has finished its work. An error of that work is raised here."""
        raise NotImplementedError

    def event(self) -> int:
        """Make an event that records the time."""
        raise NotImplementedError

    def destroy_event(self, event: int) -> None:
        """Destroy an event."""
        raise NotImplementedError

    def record(self, event: int, stream: int) -> None:
        """Put an event on a stream; it happens when the stream reaches it."""
        raise NotImplementedError

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two events that have happened: synchronize first."""
        raise NotImplementedError

    @contextmanager
    def capture(self, stream: int) -> Iterator[Capture]:
        """Record the work that is put on the stream inside the block, instead of running it.

        Afterwards `.graph` of the yielded `Capture` can be launched.

        Raises:
            InputError: The backend has no graphs.
        """
        raise InputError(f"CUDA graphs do not work with {self.name}: use another --cuda, or no graph")
        yield  # makes this a generator, as contextmanager needs

    def launch(self, graph: int, stream: int) -> None:
        """Run a captured graph on a stream. The memory that it used at capture must still be there."""
        raise NotImplementedError

    def destroy_graph(self, graph: int) -> None:
        """Destroy a graph."""
        raise NotImplementedError

    def close(self) -> None:
        """Free everything but pinned arrays that are still referenced; a second call has no effect."""
        for kind, release in (
            ("graph", self.destroy_graph),
            ("event", self.destroy_event),
            ("stream", self.destroy_stream),
            ("allocation", self.free),
        ):
            for handle in list(self._held[kind]):
                # After a fatal error the driver refuses to free anything; the error itself has been raised already.
                with suppress(DeviceError):
                    release(handle)
        self._closed = True

    def __enter__(self) -> Cuda:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("this connection to the GPU is closed")

    @staticmethod
    def _checked(array: np.ndarray, *, filled: bool = False) -> np.ndarray:
        if not array.flags.c_contiguous:
            raise InputError("only a C-contiguous array can be copied: numpy.ascontiguousarray makes one")
        if filled and not array.flags.writeable:
            raise InputError("the array to copy into is read-only")
        return array

    @staticmethod
    def _checked_size(size_bytes: int) -> int:
        if size_bytes < 1:
            raise InputError(f"memory is at least one byte, not {size_bytes}")
        return size_bytes

    def _hold(self, kind: str, handle: int, thing=None) -> int:
        self._held[kind][handle] = thing
        return handle

    def _get(self, kind: str, handle: int):
        self._check_open()
        if handle not in self._held[kind]:
            raise InputError(f"no such {kind} of {self.name}: {handle!r} was not made here, or is gone already")
        return self._held[kind][handle]

    def _drop(self, kind: str, handle: int):
        thing = self._get(kind, handle)
        del self._held[kind][handle]
        return thing


def names() -> List[str]:
    """Every backend that edgeprune knows, usable here or not, best first."""
    return [module.NAME for module in _modules()]


def available() -> Dict[str, Optional[str]]:
    """{name: None when the backend finds a GPU here, else the reason}, best first."""
    return {module.NAME: module.available() for module in _modules()}


def open(name: str = "auto") -> Cuda:
    """Open device 0.

    Args:
        name: Name of the backend; "auto": the first that opens.

    Raises:
        RuntimeUnavailable: The backend is unknown or not installed, or there is no driver or no GPU.
        DeviceError: The GPU is there, and fails.
    """
    modules = {module.NAME: module for module in _modules()}
    if name != "auto":
        if name not in modules:
            raise RuntimeUnavailable(f"unknown CUDA backend {name!r}; known: auto, {', '.join(modules)}")
        return modules[name].open()
    reasons = []
    for module in modules.values():
        try:
            return module.open()
        except EdgepruneError as error:
            reasons.append(f"{module.NAME}: {error}")
    raise RuntimeUnavailable(f"no GPU that can be used on this machine ({'; '.join(reasons)})")


def dotted(version: int) -> str:
    """CUDA's number of a version in its usual form: 12060 -> "12.6"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _modules() -> list:
    found = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in found if not name.startswith("_")]
    return sorted(modules, key=lambda module: -module.RANK)
