"""Long work on a terminal: one line on standard error that is overwritten."""

from __future__ import annotations

import sys
import time

__all__ = ["Line"]


class Line:
    """Call it with what is being done; nothing is shown where standard error is no terminal. Use it with `with`."""

    def __init__(self):
        self._shown, self._next = sys.stderr.isatty(), 0.0

    def __call__(self, text: str) -> None:
        if self._shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.2
            self._print(f"\r\x1b[K{text}")

    def __enter__(self):
        return self

    def __exit__(self, *exc) -> None:
        if self._shown:
            self._print("\r\x1b[K")

    def _print(self, text: str) -> None:
        try:
            print(text, end="", file=sys.stderr, flush=True)
        except OSError:  # the terminal has gone; the work goes on
            self._shown = False
