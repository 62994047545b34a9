"""Progress of long work on a terminal: one line on standard error that is redrawn."""

from __future__ import annotations

import sys
import time
from typing import Any, Callable, Optional

from edgeprune_device import terminal

__all__ = ["Line", "Progress", "Say", "part", "silent"]

#: Receives the progress of long work: the completed fraction, in [0, 1], and a line of text.
Progress = Callable[[float, str], None]
#: Receives a line of text.
Say = Callable[[str], None]


def silent(*progress: object) -> None:
    """A `Progress` and a `Say` that show nothing."""


def part(progress: Progress, begin: float, end: float, what: str = "") -> Progress:
    """The progress of a part of the work.

    Args:
        progress: Receives the progress of the whole work.
        begin: The fraction of the whole work that is done when the part begins.
        end: The fraction that is done when it ends.
        what: Stands before each text, with a comma; "": nothing.
    """

    def shown(fraction: float, text: str) -> None:
        progress(begin + (end - begin) * fraction, f"{what}, {text}" if what else text)

    return shown


#: The function that draws the last line instead, set by the host's stages; a `Line` then passes its text to it.
owner: Optional[Say] = None


class Line:
    """A line of progress: a context manager that is called with a text.

    The text is shown only if standard error is a terminal. The cursor is never hidden, so nothing has to be restored,
    however this process ends.
    """

    def __init__(self) -> None:
        self._shown, self._next = terminal.look(sys.stderr).live, 0.0

    def __call__(self, text: str) -> None:
        if owner is not None:
            owner(text)
        elif self._shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.2
            if terminal.foreground(sys.stderr):
                # The last column stays free, because text in it would wrap, and the next line would be drawn below.
                self._print(f"\r{terminal.clipped(text, terminal.columns(sys.stderr) - 1)}\x1b[K")

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._shown and owner is None:
            self._print("\r\x1b[K")

    def _print(self, text: str) -> None:
        try:
            print(text, end="", file=sys.stderr, flush=True)
        except OSError:  # the terminal is gone; the work continues
            self._shown = False
