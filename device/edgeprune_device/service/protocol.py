"""The messages between the supervisor and its worker.

- to the worker, on its standard input: one line of JSON, the order; later, when it may load the model, one line more
- from it, on a pipe: lines of JSON, `{"step": …, "text": …}`, `{"note": …}`, and before it ends `{"end": …}`
- from it, in shared memory: `Pulse`, which costs the worker no system call
- its exit code
"""

from __future__ import annotations

import mmap
import os

__all__ = [
    "BAD_USE",
    "BROKEN_PIPE",
    "DEADLINE",
    "FINISHED",
    "FRAMES",
    "LAST",
    "LOADING",
    "LOST",
    "REFUSED",
    "SOURCE_BROKE",
    "UNFIT",
    "UNREADY",
    "Pulse",
]

#: Exit codes of the worker; every other one, and every signal, is a crash.
FINISHED = 0  # the source has ended, or the supervisor ended the worker
BAD_USE = 2  # an option or the output can never work
REFUSED = 10  # the bundle does not verify
UNFIT = 11  # the model cannot be loaded, or fails while it runs
UNREADY = 12  # the machine lacks something: a runtime, its GPU, a program
SOURCE_BROKE = 13  # a folder or video that could not be read to its end
BROKEN_PIPE = 141  # the reader of the standard output has gone

# Cells of a Pulse. `LAST`, `DEADLINE`: time.monotonic_ns().
FRAMES = 0  # frames that are through
LAST = 1  # when the last one was
DEADLINE = 2  # if it is silent for longer than this, it hangs …
LOADING = 3  # … unless this is 1 and it works: an engine is built for minutes, a first frame takes seconds
LOST = 4  # lines that could not be written
_CELLS = 5


class Pulse:
    """Some numbers in shared memory: `pulse.cells[FRAMES] += 1`. One side writes, and each number is one store.

    Args:
        descriptor: Descriptor of the memory; without it a new one is made, all zeros.

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
