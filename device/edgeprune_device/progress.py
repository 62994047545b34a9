"""Long work on a terminal: one line on standard error that is overwritten."""

from __future__ import annotations

import sys
import time
from typing import Callable, Optional

from edgeprune_device import terminal

__all__ = ["Line"]

#: Who else draws the last line meanwhile, the host's stages: what a Line has to say is said by them.
owner: Optional[Callable[[str], None]] = None


class Line:
    """Call it with what is being done; nothing is shown where standard error is no terminal. Use it with `with`.

    The cursor is never hidden, so that nothing has to be restored, however this process ends.
    """

    def __init__(self):
        self._shown, self._next = terminal.look(sys.stderr).live, 0.0

    def __call__(self, text: str) -> None:
        if owner is not None:
            owner(text)
        elif self._shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.2
            if terminal.foreground(sys.stderr):
                # The last column stays free: what reaches it wraps, and the next line would be drawn below.
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
