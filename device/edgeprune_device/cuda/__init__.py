"""The GPU's memory, streams, events and graphs: `open() -> Cuda`, whichever library does it.

Adding a backend is adding one file here (a name that starts with "_" is not a backend). A backend module has

    NAME: str                   the value of `--cuda`
    RANK: int                   for "auto", highest first
    available() -> str | None   None when it finds a GPU here, else the reason in a few words
    open() -> Cuda

and imports its library inside these functions only. Nothing here knows of models or of TensorRT.
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

    - `integrated`: it shares the board's memory
    - `multiprocessors`: how many; it tells boards apart whose GPUs have one name, as the Orin family's may
    """

    name: str
    sm: str
    integrated: bool
    multiprocessors: int


class Capture:
    """What `Cuda.capture` yields. `graph` is None inside the block, and the graph's handle after it."""

    graph: Optional[int] = None


class Cuda:
    """Device 0 of this machine: memory, streams, events, graphs. Handles and pointers are plain ints.

    - `name`: the backend's, e.g. "ctypes"
    - `description`: for reports, e.g. "ctypes on libcudart 12.6, driver 12.6"
    - `graphs`: whether `capture` works with this backend

    A call that the driver refuses is a DeviceError; a handle that was not made here, or is gone already, an InputError.
    Use it from the thread that opened it. It works in the device's primary context, as TensorRT does.
    """

    name: str = ""
    description: str = ""
    graphs: bool = True

    def __init__(self) -> None:
        # What is alive, by kind: {handle: what the backend needs to get rid of it}.
        self._held: Dict[str, dict] = {kind: {} for kind in ("allocation", "pinned array", "stream", "event", "graph")}
        self._closed = False

    def device(self) -> Device:
        """Which GPU it is."""
        raise NotImplementedError

    def memory(self) -> Tuple[int, int]:
        """(free, total), in bytes. On an integrated GPU both are the board's."""
        raise NotImplementedError

    def alloc(self, size_bytes: int) -> int:
        """A pointer to device memory, which holds anything. InputError for less than one byte."""
        raise NotImplementedError

    def free(self, pointer: int) -> None:
        """Give back what `alloc` gave."""
        raise NotImplementedError

    def pinned(self, shape, dtype) -> np.ndarray:
        """A page-locked host array of zeros. It is freed with its last view, or by `unpin`; `close` leaves it alone."""
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
        """(pointer to page-locked memory, what frees it and never raises)."""
        raise NotImplementedError

    def _unpin(self, pointer: int, release: Callable[[], object]) -> None:
        del self._held["pinned array"][pointer]
        release()

    def unpin(self, array: np.ndarray) -> None:
        """Free a pinned array now; neither it nor a view of it may be touched afterwards."""
        self._get("pinned array", array.ctypes.data)()

    def stream(self) -> int:
        """A stream of its own, which does not wait for the default stream."""
        raise NotImplementedError

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""
        raise NotImplementedError

    def to_device(self, pointer: int, array: np.ndarray, stream: int) -> None:
        """Copy a C-contiguous array to device memory, asynchronously: `array` must live until then."""
        raise NotImplementedError

    def to_host(self, array: np.ndarray, pointer: int, stream: int) -> None:
        """Fill a C-contiguous array from device memory, asynchronously: it is filled after `synchronize`."""
        raise NotImplementedError

    def synchronize(self, stream: int) -> None:
        """Wait until the stream has done what was put on it. An error of that work comes out here."""
        raise NotImplementedError

    def event(self) -> int:
        """An event that takes the time."""
        raise NotImplementedError

    def destroy_event(self, event: int) -> None:
        """Destroy an event."""
        raise NotImplementedError

    def record(self, event: int, stream: int) -> None:
        """The event happens when the stream gets there."""
        raise NotImplementedError

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two events that have happened: synchronize first."""
        raise NotImplementedError

    @contextmanager
    def capture(self, stream: int) -> Iterator[Capture]:
        """What is put on the stream inside the block is recorded, not done. Afterwards `.graph` can be launched.

        InputError where the backend has no graphs.
        """
        raise InputError(f"CUDA graphs do not work with {self.name}: use another --cuda, or no graph")
        yield  # what makes this a generator, as contextmanager needs

    def launch(self, graph: int, stream: int) -> None:
        """Do on the stream what was captured. The memory that it used then must still be there."""
        raise NotImplementedError

    def destroy_graph(self, graph: int) -> None:
        """Destroy a graph."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what is left, but for pinned arrays that somebody still holds; calling it twice does no harm."""
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
    """{name: None when it finds a GPU here, else why not}, best first."""
    return {module.NAME: module.available() for module in _modules()}


def open(name: str = "auto") -> Cuda:
    """Device 0 by the backend `name`; "auto": by the first that opens.

    RuntimeUnavailable: unknown, not installed, no driver, no GPU. DeviceError: the GPU is there, and fails.
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
    """CUDA's number for a version, as people write it: 12060 -> "12.6"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _modules() -> list:
    found = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in found if not name.startswith("_")]
    return sorted(modules, key=lambda module: -module.RANK)
