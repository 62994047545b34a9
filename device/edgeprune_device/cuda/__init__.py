"""The GPU's memory, streams, events and graphs: `open() -> Cuda`, with any of several libraries.

To add a backend, add one file here (a name that starts with "_" is not a backend). The file's name, with "-" for "_",
is the value of `--cuda`. A backend module has the members of `Backend`, and imports its library only inside their
functions. The package does not depend on models or TensorRT.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager, suppress
from ctypes import c_ubyte, memset  # by name, because the backend `ctypes` becomes an attribute of this package
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, Protocol, Tuple, Type, Union, cast

import numpy as np

from edgeprune_device import plugins
from edgeprune_device.errors import DeviceError, EdgepruneError, InputError, RuntimeUnavailable
from edgeprune_device.hint import unknown
from edgeprune_device.option import named

__all__ = ["Backend", "Capture", "Cuda", "Device", "available", "names", "open"]


@dataclass(frozen=True)
class Device:
    """A GPU, e.g. `Device(name="Orin", sm="8.7", integrated=True, multiprocessors=16)`.

    Attributes:
        name: Name of the GPU.
        sm: Compute capability.
        integrated: Whether it shares the board's memory.
        multiprocessors: Number of multiprocessors; it distinguishes boards whose GPUs share a name, as in the Orin
            family.
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

    Use it from the thread that opened it. It uses the device's primary context, like TensorRT.

    Attributes:
        name: Name of the backend, e.g. "ctypes".
        description: Text for reports, e.g. "ctypes on libcudart 12.6, driver 12.6".
        graphs: Whether `capture` works with this backend.

    Raises:
        DeviceError: The driver refuses a call.
        InputError: A handle was not created here, or was already destroyed.
    """

    name: str = ""
    description: str = ""
    graphs: bool = True

    def __init__(self) -> None:
        # The live objects, by kind: {handle: the object that the backend needs to free it}.
        kinds = ("allocation", "pinned array", "stream", "event", "graph")
        self._held: Dict[str, Dict[int, Any]] = {kind: {} for kind in kinds}
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

    def pinned(self, shape: Tuple[int, ...], dtype: Union[np.dtype, Type[np.generic]]) -> np.ndarray:
        """A page-locked host array of zeros.

        It is freed with its last view or with `unpin`, but not with `close`.
        """
        size_bytes = self._checked_size(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        pointer, release = self._pin(size_bytes)
        memset(pointer, 0, size_bytes)
        # Every view of the array references this buffer, and the memory is freed with the buffer.
        buffer = (c_ubyte * size_bytes).from_address(pointer)
        finalizer = weakref.finalize(buffer, self._unpin, pointer, release)
        finalizer.atexit = False  # the end of the process frees it, and it may be in use until then
        self._hold("pinned array", pointer, finalizer)
        array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, buffer=memoryview(buffer))
        return array

    def _pin(self, size_bytes: int) -> Tuple[int, Callable[[], object]]:
        """Return (pointer to page-locked memory, the function that frees it and never raises)."""
        raise NotImplementedError

    def _unpin(self, pointer: int, release: Callable[[], object]) -> None:
        del self._held["pinned array"][pointer]
        release()

    def unpin(self, array: np.ndarray) -> None:
        """Free a pinned array now; it and its views must not be used afterwards."""
        self._get("pinned array", array.ctypes.data)()

    def stream(self) -> int:
        """Create a stream that does not wait for the default stream."""
        raise NotImplementedError

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""
        raise NotImplementedError

    def to_device(self, pointer: int, array: np.ndarray, stream: int) -> None:
        """Copy a C-contiguous array to device memory, asynchronously: `array` must exist until the copy is complete."""
        raise NotImplementedError

    def to_host(self, array: np.ndarray, pointer: int, stream: int) -> None:
        """Fill a C-contiguous array from device memory, asynchronously: it is filled after `synchronize`."""
        raise NotImplementedError

    def synchronize(self, stream: int) -> None:
        """Wait until the stream has finished its work. An error of that work is raised here."""
        raise NotImplementedError

    def event(self) -> int:
        """Create an event that records the time."""
        raise NotImplementedError

    def destroy_event(self, event: int) -> None:
        """Destroy an event."""
        raise NotImplementedError

    def record(self, event: int, stream: int) -> None:
        """Put an event on a stream; it is recorded when the stream reaches it."""
        raise NotImplementedError

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two recorded events; synchronize first."""
        raise NotImplementedError

    @contextmanager
    def capture(self, stream: int) -> Iterator[Capture]:
        """Record the work that is put on the stream inside the block, instead of running it.

        Afterwards `.graph` of the yielded `Capture` can be launched.

        Raises:
            InputError: The backend does not support graphs.
        """
        raise InputError(f"{self.name}: no support for CUDA graphs; use another {named('cuda')}, or no graph")
        yield  # makes this a generator, as contextmanager requires

    def launch(self, graph: int, stream: int) -> None:
        """Run a captured graph on a stream. The memory that it used during the capture must still exist."""
        raise NotImplementedError

    def destroy_graph(self, graph: int) -> None:
        """Destroy a graph."""
        raise NotImplementedError

    def close(self) -> None:
        """Free everything except pinned arrays that are still referenced; a second call has no effect."""
        for kind, release in (
            ("graph", self.destroy_graph),
            ("event", self.destroy_event),
            ("stream", self.destroy_stream),
            ("allocation", self.free),
        ):
            for handle in list(self._held[kind]):
                # After a fatal error the driver refuses to free anything; that error has already been raised.
                with suppress(DeviceError):
                    release(handle)
        self._closed = True

    def __enter__(self) -> Cuda:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("GPU connection: already closed; open a new one")

    @staticmethod
    def _checked(array: np.ndarray, *, filled: bool = False) -> np.ndarray:
        if not array.flags.c_contiguous:
            raise InputError("array: cannot be copied, because it is not C-contiguous; use numpy.ascontiguousarray")
        if filled and not array.flags.writeable:
            raise InputError("array: read-only (expected a writable array)")
        return array

    @staticmethod
    def _checked_size(size_bytes: int) -> int:
        if size_bytes < 1:
            raise InputError(f"size of the memory: invalid value (found {size_bytes}, expected at least 1 byte)")
        return size_bytes

    def _hold(self, kind: str, handle: int, thing: Any = None) -> int:
        self._held[kind][handle] = thing
        return handle

    def _get(self, kind: str, handle: int) -> Any:
        self._check_open()
        if handle not in self._held[kind]:
            raise InputError(
                f"{self.name}: unknown {kind} {handle!r} (not created by this connection, or already destroyed)"
            )
        return self._held[kind][handle]

    def _drop(self, kind: str, handle: int) -> Any:
        thing = self._get(kind, handle)
        del self._held[kind][handle]
        return thing


class Backend(Protocol):
    """The module of a backend.

    Attributes:
        RANK: Its rank for "auto", highest first.
    """

    RANK: int

    def available(self) -> Optional[str]:
        """None if the backend finds a GPU here, else the reason in a few words."""

    def open(self) -> Cuda:
        """Open device 0."""


def names() -> List[str]:
    """All backends that edgeprune has, usable here or not, best first."""
    return list(_backends())


def available() -> Dict[str, Optional[str]]:
    """{name: None if the backend finds a GPU here, else the reason}, best first."""
    return {name: backend.available() for name, backend in _backends().items()}


def open(name: str = "auto") -> Cuda:
    """Open device 0.

    Args:
        name: Name of the backend; "auto": the first that opens.

    Raises:
        RuntimeUnavailable: The backend is unknown or not installed, or the driver or the GPU is missing.
        DeviceError: The GPU exists but fails.
    """
    backends = _backends()
    if name != "auto":
        if name not in backends:
            raise RuntimeUnavailable(unknown(f"{named('cuda')}: unknown backend", name, ["auto", *backends]))
        return backends[name].open()
    reasons = []
    for known, backend in backends.items():
        try:
            return backend.open()
        except EdgepruneError as error:
            text = str(error)
            reasons.append(text if text.startswith(f"{known}:") else f"{known}: {text}")
    raise RuntimeUnavailable(f"no usable GPU on this machine ({'; '.join(reasons)})")


def dotted(version: int) -> str:
    """Convert CUDA's number of a version to its usual form: 12060 -> "12.6"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _backends() -> Dict[str, Backend]:
    """{name: its module}, best first."""
    backends = {name: cast(Backend, plugins.load(__name__, name)) for name in plugins.names(__path__)}
    ranked = sorted(backends.items(), key=lambda item: -item[1].RANK)
    return {name.replace("_", "-"): backend for name, backend in ranked}
