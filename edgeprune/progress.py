"""What the user sees while long work runs: one calm line with the time that is left, or plain lines when piped."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator


class Reporter:
    """Stages and steps on standard error; standard output stays for results.

    quiet: say nothing but warnings. On a terminal the step line is redrawn; elsewhere a line appears every 10 s.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty() and not quiet
        self._number = 0
        self._total = 0

    def plan(self, stages: int) -> None:
        self._total = stages

    def say(self, text: str) -> None:
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        print(f"warning: {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Callable[[float, str], None]]:
        """Gives `step(fraction done, what)`, which draws the bar and the time left."""
        self._number += 1
        head = f"[{self._number}/{self._total}] {name}" if self._total else name
        if self._terminal:
            yield from self._drawn(head)
        else:
            yield from self._printed(head)

    def done(self, text: str) -> None:
        self.say(f"      {text}")

    def skip(self, name: str) -> None:
        self._number += 1
        self.say(f"[{self._number}/{self._total}] {name}: done before, kept")

    def _drawn(self, head: str):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<16}"), BarColumn(24), TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[what]}"),
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(head, total=1.0, what="")
            yield lambda fraction, what="": bar.update(task, completed=fraction, what=what)
            bar.update(task, completed=1.0, what="")

    def _printed(self, head: str):
        self.say(head)
        start = last = time.monotonic()

        def step(fraction: float, what: str = "") -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= 10 and 0 < fraction < 1:
                last = now
                left = (now - start) * (1 - fraction) / fraction
                self.say(f"      {fraction:4.0%}  {what}  about {_clock(left)} left")

        yield step


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
