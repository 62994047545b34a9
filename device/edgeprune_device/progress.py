"""Progress of long work on a terminal: one line on standard error that is overwritten."""

from __future__ import annotations

import sys
import time
from typing import Callable, Optional

from edgeprune_device import terminal

__all__ = ["Line"]

#: The function that draws the last line instead, set by the host's stages; a `Line` then passes its text to it.
owner: Optional[Callable[[str], None]] = None


class Line:
    """A line of progress: call it with a text. Use it with `with`.

    The text is shown only where standard error is a terminal. The cursor is never hidden, so it needs no restoring,
    however this process ends.
    """

    def __init__(self):
        self._shown, self._next = terminal.look(sys.stderr).live, 0.0

    def __call__(self, text: str) -> None:
        if owner is not None:
            owner(text)
        elif self._shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.2
            if terminal.foreground(sys.stderr):
                # The last column stays free: text in it would wrap, and the next line would be drawn below.
                self._print(f"\r{terminal.clipped(text, terminal.columns(sys.stderr) - 1)}\x1b[K")

    def __enter__(self):
        return self

    def __exit__(self, *exc) -> None:
        if self._shown and owner is None:
            self._print("\r\x1b[K")

    def _print(self, text: str) -> None:
        try:
            print(text, end="", file=sys.stderr, flush=True)
        except OSError:  # the terminal has gone; the work goes on
            self._shown = False
