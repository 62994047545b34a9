"""Reads all channels at regular times, in a separate process.

A thread would hold the interpreter's lock during the measurement, and a slow sensor (I2C) would delay the measurement.

The caller writes a line to the worker's standard input, "series" to get the samples, and the worker answers each one
with a line of JSON. The worker keeps the samples. It ends with its standard input or its parent, so that it does not
outlive a killed benchmark.
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
from typing import IO, Any, Dict, List, Optional, cast

from edgeprune_device import interpreter
from edgeprune_device.errors import reason
from edgeprune_device.probes.channel import Channel
from edgeprune_device.probes.discovery import discover
from edgeprune_device.probes.series import Series
from edgeprune_device.probes.sysfs import sysroot

__all__ = ["Monitor"]

_ANSWER_S = 20.0  # for an answer of the worker, which is slow on a machine under full load
_MOST_ROUNDS = 12000  # 40 minutes at 0.2 s; then every second one is dropped, and the interval doubles …
_KEPT_ROUNDS = 1500  # … except the first ones, which hold the idle power from the seconds before the load
_WORKER = "from edgeprune_device.probes.monitor import main; main(sys.argv[1:])"


class Monitor:
    """Reads all channels while its context lasts.

    Use `with Monitor(interval_s=0.2) as monitor: …`, then `monitor.series()`. Failures of the sensors
    never raise.

    Args:
        root: Root of the file system, by default `sysroot()`.
        interval_s: Interval between the rounds of readings, s.

    Attributes:
        problem: Why there is no series, in a few words; None: no problem.
    """

    def __init__(self, root: Optional[Path] = None, interval_s: float = 0.2) -> None:
        self._root = sysroot() if root is None else Path(root)
        self._interval_s = interval_s
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._last: Optional[Series] = None
        self._rest = b""
        self.problem: Optional[str] = None

    @property
    def pid(self) -> Optional[int]:
        """Process id of the worker; None if it is not running."""
        return None if self._process is None else self._process.pid

    def __enter__(self) -> Monitor:
        """Start the worker and wait for its first round of readings."""
        if not discover(self._root, self._interval_s):
            self.problem = "no sensors found"
            return self
        # -S: installed packages are not searched.
        command = interpreter.command(_WORKER, str(self._root), repr(self._interval_s), flags=["-S"])
        try:
            # A separate session: Ctrl-C at the terminal reaches only the benchmark, which then fetches the samples.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            self.problem = f"the monitor did not start ({reason(error)})"
            return self
        self._ask(self._process, "")
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self._last = self.series()
        self._end()

    def series(self) -> Optional[Series]:
        """The samples so far, or after the context all samples until its end.

        None without sensors or with a `problem`.
        """
        if self._process is None:
            return self._last
        data = self._ask(self._process, "series")
        return None if data is None else Series.from_json(data)

    def _ask(self, process: subprocess.Popen[bytes], word: str) -> Optional[Dict[str, Any]]:
        """Send `word` and return the worker's next line. Any failure ends the worker and is stored in `problem`."""
        stdin, stdout = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
        try:
            if word:
                stdin.write(word.encode("ascii") + b"\n")
                stdin.flush()
            answer: Dict[str, Any] = json.loads(self._line(stdout.fileno()).decode("utf-8"))
            return answer
        except TimeoutError:
            failure = f"no answer in {_ANSWER_S:.0f} s"
        except (OSError, EOFError, ValueError):
            failure = "its process ended"
        self.problem = f"the sensor monitor failed ({failure})"
        self._end()
        return None

    def _line(self, descriptor: int) -> bytes:
        until = time.monotonic() + _ANSWER_S
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
            cast(IO[bytes], process.stdin).close()
        cast(IO[bytes], process.stdout).close()
        try:
            process.wait(2.0)
        except subprocess.TimeoutExpired:
            process.kill()
            # A read that hangs in the kernel survives even this until the driver gives up; the process is abandoned.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2.0)


class _Recorder:
    """The samples of the worker. NaN stands for None: an array of doubles needs a quarter of the memory of a list."""

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
            # Missed rounds are skipped, because catching up would take several samples at the same moment.
            due += recorder.interval_s * max(1, math.ceil((time.monotonic() - due) / recorder.interval_s))


def _say(data: Dict[str, Any]) -> None:
    line = json.dumps(data, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
    while line:
        line = line[os.write(1, line) :]
