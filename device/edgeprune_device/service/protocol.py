"""The messages between the supervisor and its worker.

- to the worker, on its standard input: one line of JSON, the order; later one more line, which lets it load the model
- from it, on a pipe: lines of JSON, `{"step": …, "text": …}`, `{"note": …}`, and before it ends `{"end": …}`
- from it, in shared memory: `Pulse`, which costs the worker no system call
- its exit code
"""

from __future__ import annotations

import mmap
import os
from typing import Optional, TypedDict

__all__ = [
    "AGE",
    "BAD_USE",
    "BROKEN_PIPE",
    "DEADLINE",
    "DECODING",
    "FINISHED",
    "FRAMES",
    "LAST",
    "LOADING",
    "LOST",
    "REFUSED",
    "SLOW",
    "SOURCE",
    "SOURCE_BROKE",
    "TIMES",
    "UNFIT",
    "UNREADY",
    "Order",
    "Pulse",
    "SentOrder",
]

#: Exit codes of the worker; any other code and any signal is a crash.
FINISHED = 0  # the source has ended, or the supervisor ended the worker
BAD_USE = 2  # an option or the output can never work
REFUSED = 10  # the bundle does not verify
UNFIT = 11  # the model cannot be loaded, or fails while it runs
UNREADY = 12  # the machine lacks something: a runtime, its GPU, a program
SOURCE_BROKE = 13  # a folder or video that could not be read to the end
BROKEN_PIPE = 141  # the reader of the standard output is gone

# Cells of a Pulse. `LAST`, `DEADLINE`: time.monotonic_ns().
FRAMES = 0  # completed frames
LAST = 1  # when the last frame was completed
DEADLINE = 2  # a worker that is silent after this time has hung …
LOADING = 3  # … unless this is 1 and it uses the CPU: building an engine takes minutes, a first frame seconds
LOST = 4  # lines that could not be written
SOURCE = 5  # 1 while it opens its source, or waits for a prepared frame; the model is then not at fault
TIMES = 6  # and the three after it: typical time of each stage, ns; see `pace`
AGE = 10  # typical age of a result, ns
SLOW = 11  # 0, or 1 + index of the stage that is too slow for the camera
DECODING = 12  # 1 while a frame is decoded, which may be at the same time as an inference
_CELLS = 13


class Order(TypedDict):
    """The order to a worker.

    Attributes:
        root: Root of the releases; None: `bundle` runs.
        release: ID of the release; None: `bundle` runs.
        bundle: The bundle to run; None: `release` runs.
        allow_untrusted: Accept the bundle of an untrusted key.
        patient: Wait for a missing part, as a service does, instead of reporting it.
        source: Source of frames.
        output: Output of the lines.
        listener: Descriptor of the listening socket, if the output is a socket.
        precision: Precision of the model, or "auto".
        runtime: Name of the runtime, or "auto".
        cuda: CUDA backend.
        conf: Lowest score of a detection; None: the bundle's.
        threads: CPU threads of the runtime; None: its own choice.
        watchdog_s: Time after which a silent worker counts as hung, s.
        limit_s: Time limit for loading the model, and for its first inference, s.
        max_megapixels: Largest image to decode.
        first: Number of the first frame.
        overlap: Decode the next frame while the network works on the current one.
    """

    root: Optional[str]
    release: Optional[str]
    bundle: Optional[str]
    allow_untrusted: bool
    patient: bool
    source: str
    output: str
    listener: Optional[int]
    precision: str
    runtime: str
    cuda: str
    conf: Optional[float]
    threads: Optional[int]
    watchdog_s: float
    limit_s: float
    max_megapixels: int
    first: int
    overlap: bool


class SentOrder(Order):
    """An order with the descriptors that the worker inherits.

    Attributes:
        messages: Descriptor of the pipe for the worker's messages.
        pulse: Descriptor of the `Pulse`.
    """

    messages: int
    pulse: int


class Pulse:
    """Numbers in shared memory: `pulse.cells[FRAMES] += 1`. Only one side writes, and each write is a single store.

    Args:
        descriptor: Descriptor of existing memory; by default, new memory with zeros is created.

    Attributes:
        descriptor: Descriptor of the memory, which the other process inherits.
        cells: The numbers, int64.
    """

    def __init__(self, descriptor: int = -1):
        new = descriptor < 0
        self.descriptor = os.memfd_create("edgeprune-pulse") if new else descriptor
        if new:
            os.ftruncate(self.descriptor, mmap.PAGESIZE)
        self._page = mmap.mmap(self.descriptor, mmap.PAGESIZE)
        self.cells = memoryview(self._page).cast("q")[:_CELLS]

    def close(self) -> None:
        """Free the memory."""
        self.cells.release()
        self._page.close()
        os.close(self.descriptor)
