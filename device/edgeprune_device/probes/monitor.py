"""Reads all channels at even times, in a separate process.

A thread would hold the interpreter's lock during the measurement, and a slow sensor (I2C) would hold it up.

The caller writes a line to the worker's standard input, "series" for the samples, and the worker answers each with one
line of JSON. The worker keeps the samples. It ends when its standard input does, or when its parent has gone, so that
none outlives a killed benchmark.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import subprocess
import time
from array import array
from pathlib import Path
from typing import Any, Dict, List, Optional

from edgeprune_device import interpreter
from edgeprune_device.probes.channel import Channel
from edgeprune_device.probes.discovery import discover
from edgeprune_device.probes.series import Series
from edgeprune_device.probes.sysfs import sysroot

__all__ = ["Monitor"]

_ANSWER_S = 20.0  # for a line from the worker; a machine under full load is slow, a sensor that hangs never answers
_MOST_ROUNDS = 12000  # 40 minutes at 0.2 s; then every second one goes, and the interval doubles …
_KEPT_ROUNDS = 1500  # … but of the first: the power at rest stands there, in a few seconds before the load
_WORKER = "from edgeprune_device.probes.monitor import main; main(sys.argv[1:])"


class Monitor:
    """Reads all channels while its context lasts.

    Use `with Monitor(interval_s=0.2) as monitor: …`, then `monitor.series()`. It never raises for a failure of the
    sensors.

    Args:
        root: Root of the file system, by default `sysroot()`.
        interval_s: Interval between the rounds of readings, s.

    Attributes:
        problem: Why there is no series, in a few words; None: no problem.
    """

    def __init__(self, root: Optional[Path] = None, interval_s: float = 0.2) -> None:
        self._root = sysroot() if root is None else Path(root)
        self._interval_s = interval_s
        self._process: Optional[subprocess.Popen] = None
        self._last: Optional[Series] = None
        self._rest = b""
        self.problem: Optional[str] = None

    @property
    def pid(self) -> Optional[int]:
        """Process id of the worker; None where none runs."""
        return None if self._process is None else self._process.pid

    def __enter__(self) -> Monitor:
        """Start the worker and wait for its first round of readings."""
        if not discover(self._root, self._interval_s):
            self.problem = "no sensors found"
            return self
        # Without site: no installed package is searched.
        command = interpreter.command(_WORKER, str(self._root), repr(self._interval_s), flags=["-S"])
        try:
            # A separate session: Ctrl-C at the terminal is for the benchmark, which then takes the samples.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            self.problem = f"the monitor did not start ({str(error.strerror or error).lower()})"
            return self
        self._ask("")
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self._last = self.series()
        self._end()

    def series(self) -> Optional[Series]:
        """The samples until now, or after the context those until its end.

        None where there are no sensors or there is a `problem`.
        """
        if self._process is None:
            return self._last
        data = self._ask("series")
        return None if data is None else Series.from_json(data)

    def _ask(self, word: str) -> Optional[Dict[str, Any]]:
        """Send `word` and return the worker's next line. Any failure ends the worker and is kept in `problem`."""
        try:
            if word:
                self._process.stdin.write(word.encode("ascii") + b"\n")
                self._process.stdin.flush()
            return json.loads(self._line().decode("utf-8"))
        except TimeoutError:
            reason = f"no answer in {_ANSWER_S:.0f} s"
        except (OSError, EOFError, ValueError):
            reason = "it ended"
        self.problem = f"the monitor failed ({reason})"
        self._end()
        return None

    def _line(self) -> bytes:
        until = time.monotonic() + _ANSWER_S
        descriptor = self._process.stdout.fileno()
        poll = select.poll()  # select() fails in a process with more than 1024 open files
        poll.register(descriptor, select.POLLIN)
        parts = [self._rest]
        while b"\n" not in parts[-1]:
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                raise TimeoutError
            part = os.read(descriptor, 1 << 20)
            if not part:
                raise EOFError
            parts.append(part)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        try:
            process.wait(2.0)
        except subprocess.TimeoutExpired:
            process.kill()
            # A read that hangs inside the kernel outlives even this until the driver gives up; it is left behind.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2.0)


class _Recorder:
    """The samples of the worker. NaN stands for None: an array of doubles takes a quarter of a list's memory."""

    def __init__(self, channels: List[Channel], interval_s: float) -> None:
        self.channels = channels
        self.interval_s = interval_s
        self.t_ns: List[int] = []
        self.values = [array("d") for _ in channels]
        self.errors = [0] * len(channels)
        self.rounds, self.spent_ns, self.longest_ns = 0, 0, 0
        self.began_ns, self.began_cpu_s = time.monotonic_ns(), time.process_time()

    def round(self) -> None:
        start = time.monotonic_ns()
        self.t_ns.append(start)
        for i, channel in enumerate(self.channels):
            value = channel.read()
            self.errors[i] += value is None
            self.values[i].append(math.nan if value is None else value)
        taken = time.monotonic_ns() - start
        self.rounds, self.spent_ns, self.longest_ns = (
            self.rounds + 1,
            self.spent_ns + taken,
            max(self.longest_ns, taken),
        )
        if len(self.t_ns) >= _MOST_ROUNDS:
            self.t_ns = self.t_ns[:_KEPT_ROUNDS] + self.t_ns[_KEPT_ROUNDS::2]
            self.values = [values[:_KEPT_ROUNDS] + values[_KEPT_ROUNDS::2] for values in self.values]
            self.interval_s *= 2

    def to_json(self) -> Dict[str, Any]:
        elapsed_s = (time.monotonic_ns() - self.began_ns) / 1e9
        share = (time.process_time() - self.began_cpu_s) / elapsed_s if elapsed_s > 0 else None
        series = Series(
            self.interval_s,
            tuple(self.t_ns),
            {c.key: (c.kind, c.unit, [_plain(v) for v in values]) for c, values in zip(self.channels, self.values)},
            {channel.key: count for channel, count in zip(self.channels, self.errors) if count},
            {
                "mean": round(self.spent_ns / max(1, self.rounds) / 1e6, 3),
                "max": round(self.longest_ns / 1e6, 3),
            },
            None if share is None else round(share, 5),
        )
        return series.to_json()


def _plain(value: float) -> Optional[float]:
    if math.isnan(value):
        return None
    return int(value) if value.is_integer() else round(value, 3)


def main(arguments: List[str]) -> None:
    """Run the worker: read the channels until standard input ends, and answer each line on it with the series as JSON.

    Args:
        arguments: The root of the file system, and the interval in seconds.
    """
    parent = os.getppid()
    root, interval_s = Path(arguments[0]), float(arguments[1])
    recorder = _Recorder(discover(root, interval_s), interval_s)
    recorder.round()
    _say({"ready": len(recorder.channels)})
    due = time.monotonic() + recorder.interval_s
    while os.getppid() == parent:
        ready, _, _ = select.select([0], [], [], max(0.0, due - time.monotonic()))
        if ready:
            asked = os.read(0, 4096)
            if not asked:
                return
            for _ in range(asked.count(b"\n")):
                _say(recorder.to_json())
        now = time.monotonic()
        if now >= due:
            recorder.round()
            # Rounds that were missed stay missed: catching up would put several samples at one moment.
            due += recorder.interval_s * max(1, math.ceil((time.monotonic() - due) / recorder.interval_s))


def _say(data: Dict[str, Any]) -> None:
    line = json.dumps(data, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
    while line:
        line = line[os.write(1, line) :]
