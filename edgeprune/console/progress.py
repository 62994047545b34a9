"""Progress of long work: on a terminal one line with the time left, in a pipe plain lines.

    [1/8] baseline     0:21  3.01 M parameters, 1.01 G MACs, mAP50-95 0.247 on 400 images, 8865 boxes
    [2/8] plan         0:48  304 of 1504 channels removed, ranked by energy
    [3/8] prune        0:35  ━━━━━━━━╸───────────   42 %  pruned: 168/400 images, 50 s left

Only the last line is redrawn, at most twice a second, and only if it has changed. Each redraw sends about a hundred
bytes. A thread draws it. The clock therefore keeps running while a stage is silent, and a paused terminal (Ctrl-S) does
not block the work. The cursor is never hidden, so nothing has to be restored when the process ends.
"""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

from edgeprune_device import progress, terminal

from edgeprune.console.eta import Remaining
from edgeprune.console.text import about, clock

_DRAWN_EVERY_S = 0.5
#: Without a terminal a line is printed at intervals: (up to this age of the stage, s; interval, s).
_PRINTED_EVERY_S = ((60, 10), (float("inf"), 60))
_HEAD = 14  # columns of "[4/8] finetune"
#: The least width of a terminal with a bar, and the limits of the bar's width; a bar takes a fifth of the line.
_BAR_FROM, _BAR_COLUMNS = 76, (12, 30)
_NARROWEST = 10  # the least columns for the text of the current work


class Reporter:
    """Reports stages and steps on standard error; standard output is for results only.

    On a terminal the last line is redrawn. Otherwise a line is printed every 10 s in the first minute of a stage, then
    every minute. Each numbered stage leaves one line: its name, its duration and its result.

    Args:
        quiet: print warnings only.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._look = terminal.look(sys.stderr)
        self._number = 0
        self._total = 0
        self._running: _Stage | None = None
        self._ended: _Stage | None = None  # its line is printed with its result
        self._line = ""  # the line that is drawn now
        self._gone = False
        self._writing = threading.RLock()
        self._stream = sys.stderr

    def plan(self, stages: int) -> None:
        """Set the number of stages, so that each line shows "[n/stages]"."""
        self._number, self._total = 0, stages

    def say(self, text: str) -> None:
        """Print a message, unless quiet."""
        if not self._quiet:
            self._tell(self._look.text(text))

    def warn(self, text: str) -> None:
        """Print a warning, even when quiet."""
        self._tell(f"{self._look.style('warning:', 'bold', 'yellow')} {self._look.text(text)}")

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[_Stage]:
        """Run a stage in the block, with a progress line.

        When the fraction falls, a new count begins. The time left always belongs to the text beside it.

        Args:
            name: name of the stage.

        Yields:
            `step(fraction, what)`, which moves the bar: the fraction done in [0, 1], and a line of text.
        """
        self._leave_line()
        self._number += 1
        stage = _Stage(f"[{self._number}/{self._total}]" if self._total else "", name)
        if self._quiet:
            yield stage
            return
        if not self._look.live:
            self._tell(stage.head(self._look).rstrip())
        try:
            with self._drawn(stage):
                yield stage
        except BaseException as error:
            if stage.number:
                colour = "yellow" if isinstance(error, KeyboardInterrupt) else "red"
                self._tell(self._row(stage, stage.stopped(error), colour))
            raise
        stage.ended = time.monotonic()
        self._ended = stage if stage.number else None

    def done(self, text: str) -> None:
        """Print the result of the stage that has just ended, on its line."""
        self._leave_line(text)

    def skip(self, name: str) -> None:
        """Print the line of a stage that an earlier run has completed."""
        self._leave_line()
        self._number += 1
        if not self._quiet:
            kept = _Stage(f"[{self._number}/{self._total}]", name)
            self._tell(f"{kept.head(self._look, 'dim')}  {'':>5}  done before, kept")

    # -- permanent lines -------------------------------------------------------------------------------------------
    def _leave_line(self, text: str = "") -> None:
        stage, self._ended = self._ended, None
        if stage is not None:
            self._tell(self._row(stage, text, "green"))
        elif text:
            self.say(text)

    def _row(self, stage: _Stage, text: str, colour: str) -> str:
        """The line of a stage: its name, its duration and its result, which a terminal wraps between words."""
        head = f"{stage.head(self._look, colour)}  {self._look.style(f'{clock(stage.seconds):>5}', 'dim')}  "
        text, width = self._look.text(text), terminal.columns(self._stream) - 1
        column = max(_HEAD, terminal.cells(stage.plain)) + 9
        if not self._look.live or not text:
            return (head + text).rstrip()
        indent = column if width - column >= 40 else 6
        lines = textwrap.wrap(text, width - indent, break_long_words=False, break_on_hyphens=False)
        if indent < column:  # too narrow for two columns
            return "\n".join([head.rstrip(), *(f"{'':6}{line}" for line in lines)])
        return "\n".join([head + lines[0], *(f"{'':{indent}}{line}" for line in lines[1:])])

    def _tell(self, text: str) -> None:
        """Print one or more complete lines above the progress line."""
        with self._writing:
            if self._running is None:
                self._stream = sys.stderr  # a test or a notebook may have replaced it
            self._write(f"\r\x1b[K{text}\n{self._line}" if self._line else f"{text}\n")

    def _print(self, stream: TextIO, line: str) -> None:
        """Print a line from other code to its own stream, above the progress line."""
        with self._writing:
            if self._line:
                self._write("\r\x1b[K")
            stream.write(f"{line}\n")
            stream.flush()
            self._write(self._line)

    def _write(self, text: str) -> None:
        if self._gone:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:  # the reader closed the pipe, which ends the work, as in every command
            raise
        except (OSError, ValueError):  # the terminal was closed or its link broke: the work continues
            self._gone = True

    # -- the progress line ---------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _drawn(self, stage: _Stage) -> Iterator[None]:
        """Draw the line in a thread while the block runs, and print the output of other code above it."""
        self._running, self._stream = stage, sys.stderr
        stop = threading.Event()
        thread = threading.Thread(target=self._draw_until, args=(stop, stage), daemon=True, name="progress")
        before = sys.stdout, sys.stderr, progress.owner
        progress.owner = stage.say
        if self._look.live:
            sys.stderr = _Above(self, sys.stderr)
            if sys.stdout is not None and sys.stdout.isatty():
                sys.stdout = _Above(self, sys.stdout)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, _Above):
                    stream.end()
            sys.stdout, sys.stderr, progress.owner = before
            self._running = None
            with self._writing:
                if self._line:
                    self._line = ""
                    self._write("\r\x1b[K")

    def _draw_until(self, stop: threading.Event, stage: _Stage) -> None:
        printed = 0.0
        try:
            while not stop.wait(_DRAWN_EVERY_S):
                if self._look.live:
                    self._draw(stage)
                    continue
                every = next(every for until, every in _PRINTED_EVERY_S if stage.seconds <= until)
                if stage.seconds - printed >= every:
                    printed = stage.seconds
                    self._tell(render(stage, 0, self._look))
        except BrokenPipeError:  # the next message from the main thread raises it again
            self._gone = True

    def _draw(self, stage: _Stage) -> None:
        if not terminal.foreground(self._stream):
            self._line = ""
            return
        line = render(stage, terminal.columns(self._stream) - 1, self._look)
        with self._writing:
            if line != self._line:
                self._line = line
                self._write(f"\r{line}\x1b[K")


class _Stage:
    """One stage while it runs, called as `step(fraction, what)`."""

    def __init__(self, number: str, name: str) -> None:
        self.number, self.name = number, name
        self.began = time.monotonic()
        self.ended: float | None = None
        self.fraction: float | None = None
        self.what = ""
        self._remaining = Remaining()
        self._lock = threading.Lock()

    def __call__(self, fraction: float, what: str = "") -> None:
        with self._lock:
            self.fraction, self.what = min(max(fraction, 0.0), 1.0), what
            self._remaining.update(time.monotonic(), self.fraction)

    def say(self, what: str) -> None:
        """Set the text of the current work if nothing is counted."""
        self.what = what

    @property
    def plain(self) -> str:
        return f"{self.number} {self.name}".strip()

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.began

    @property
    def left_s(self) -> float | None:
        with self._lock:
            return self._remaining.left(time.monotonic())

    def head(self, look: terminal.Look, colour: str = "cyan") -> str:
        padding = " " * (_HEAD - terminal.cells(self.plain))
        number = f"{look.style(self.number, 'dim')} " if self.number else ""
        return f"{number}{look.style(self.name, *(['dim'] if colour == 'dim' else ['bold', colour]))}{padding}"

    def stopped(self, error: BaseException) -> str:
        how = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        at = f" at {int(self.fraction * 100)} %" if self.fraction else ""
        return f"{how}{at}{': ' if self.what else ''}{self.what}"


def render(stage: _Stage, width: int, look: terminal.Look) -> str:
    """Render the running stage in at most `width` columns; 0: no limit.

    A narrow terminal drops parts in this order: the bar, the end of the text, the time left. At 40 columns a
    single time remains, unaligned.
    """
    fraction, left = stage.fraction, stage.left_s
    what, mark = look.text(" ".join(stage.what.splitlines())), "…" if look.unicode else "..."
    ending = "" if left is None else f", {about(left)} left" if what else f"{about(left)} left"
    percent = "     " if fraction is None else f"{int(fraction * 100):>3} %"
    head, took = stage.head(look), f"{clock(stage.seconds):>5}"
    if not width:
        return f"{head}  {took}  {percent}  {what}{ending}".rstrip()
    bar = ""
    if width >= _BAR_FROM and fraction is not None:
        bar = f"  {_bar(fraction, _bar_columns(width), look)}"
    used = max(_HEAD, terminal.cells(stage.plain)) + 2 + len(took) + 2 + len(percent) + 2
    used += 2 + _bar_columns(width) if bar else 0
    room = width - used
    if room < len(ending) + min(len(what), _NARROWEST):
        ending = ""
    if room < _NARROWEST:
        times = took.strip() if left is None else f"{about(left)} left"
        return terminal.clipped(" ".join(filter(None, (stage.plain, percent.strip(), times, what))), width, mark)
    what = terminal.clipped(what, room - len(ending), mark)
    return f"{head}  {took}{bar}  {percent}  {what}{look.style(ending, 'dim')}".rstrip()


def _bar_columns(width: int) -> int:
    """The columns of the bar in a line of this width."""
    return min(max(width // 5, _BAR_COLUMNS[0]), _BAR_COLUMNS[1])


def _bar(fraction: float, width: int, look: terminal.Look) -> str:
    """Draw a bar of this many columns, in half-column steps if the terminal has the characters."""
    full, half, rest = ("━", "╸", "─") if look.unicode else ("=", ">", ".")
    halves = int(fraction * width * 2)
    done = full * (halves // 2) + (half if halves % 2 else "")
    return look.style(done, "cyan") + look.style(rest * (width - len(done)), "dim")


class _Above:
    """A standard stream that prints complete lines above the progress line."""

    def __init__(self, reporter: Reporter, stream: TextIO) -> None:
        self._reporter, self._under, self._part, self._process = reporter, stream, "", os.getpid()

    def write(self, text: str) -> int:
        if os.getpid() != self._process:  # a forked worker may have inherited a held lock
            return self._under.write(text)
        *lines, self._part = (self._part + text).split("\n")
        for line in lines:
            self._reporter._print(self._under, line)
        return len(text)

    def end(self) -> None:
        """Print a last line that has no line end."""
        part, self._part = self._part, ""
        if part:
            self._reporter._print(self._under, part)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._under, name)
