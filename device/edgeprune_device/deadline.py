"""A time limit for native code, which may never return: a model can contain an endless loop.

Python handles a signal or an exception only between its own instructions. While a runtime computes, neither Ctrl-C nor
SIGTERM has an effect. Therefore a thread ends the whole process at the deadline, or a few seconds after such a signal.
A runtime that also holds the interpreter's lock is ended by the kernel's timer (SIGALRM).
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import Callable, Iterator, Optional

from edgeprune_device.errors import GateError
from edgeprune_device.option import named

__all__ = ["limited", "paused"]

_GRACE_S = 5.0  # time for this process to end by itself
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTERRUPTED = 130

#: Receives the exit code and the message, and ends the process.
End = Callable[[int, str], None]


def _end(code: int, message: str) -> None:
    """Print one line in the form of the command line's errors, and end this process."""
    before = "\n" if sys.stderr.isatty() else ""  # below the line of progress
    kind = "interrupted" if code == _INTERRUPTED else "error"
    with suppress(OSError):
        os.write(2, f"{before}edgeprune: {kind}: {message}\n".encode("utf-8", "replace"))
    os._exit(code)


class _Watch:
    """Watches one block, in a thread."""

    def __init__(self, seconds: float, what: str, end: End):
        self._seconds, self._what, self._end = seconds, what, end
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._writes, False)
        self._deadline_s = 0.0
        self.renew()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def renew(self) -> None:
        """Restart the clock of the block."""
        self._deadline_s = time.monotonic() + self._seconds
        signal.setitimer(signal.ITIMER_REAL, self._seconds + 2 * _GRACE_S)
        self._wake()

    def pause(self) -> None:
        """Stop the clock until `renew`."""
        self._deadline_s = float("inf")
        signal.setitimer(signal.ITIMER_REAL, 0)

    def close(self) -> None:
        """End the watch."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.close(self._writes)
        self._thread.join()
        os.close(self._reads)

    @property
    def descriptor(self) -> int:
        """The descriptor to which the interpreter writes the number of each signal."""
        return self._writes

    def _wake(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._writes, b"\0")

    def _run(self) -> None:
        interrupted_s: Optional[float] = None
        while True:
            until_s = min(self._deadline_s, interrupted_s or self._deadline_s)
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                late = f"{self._what} did not finish within {self._seconds:g} s; raise {named('limit')}"
                if until_s == interrupted_s:
                    self._end(_INTERRUPTED, f"{self._what} was interrupted")
                else:
                    self._end(GateError.exit_code, late)
                return
            if not select.select([self._reads], [], [], min(left_s, 3600.0))[0]:
                continue
            data = os.read(self._reads, 1 << 10)
            if not data:
                return
            if interrupted_s is None and any(number in data for number in _SIGNALS):
                interrupted_s = time.monotonic() + _GRACE_S


_watch: Optional[_Watch] = None


@contextmanager
def limited(seconds: float, what: str, end: End = _end) -> Iterator[Callable[[], None]]:
    """End this process if the block exceeds the time limit, even inside a native library.

    In the main thread, SIGINT, SIGTERM and SIGHUP also end the process if Python cannot handle them within a few
    seconds. A nested block has no limit of its own.

    Args:
        seconds: The limit, s.
        what: Begins the message, e.g. "loading the model".
        end: Called at the end in place of printing the message.

    Yields:
        A function that restarts the clock of the block.
    """
    global _watch
    if _watch is not None:
        yield _watch.renew
        return
    main = threading.current_thread() is threading.main_thread()
    watch = _watch = _Watch(seconds, what, end)
    try:
        former = signal.set_wakeup_fd(watch.descriptor, warn_on_full_buffer=False) if main else -1
        try:
            yield watch.renew
        finally:
            if main:
                signal.set_wakeup_fd(former)
    finally:
        _watch = None
        watch.close()


@contextmanager
def paused() -> Iterator[None]:
    """Stop the clock of the surrounding block, because the work inside has a separate limit."""
    watch = _watch
    if watch is not None:
        watch.pause()
    try:
        yield
    finally:
        if watch is not None:
            watch.renew()
