"""NVIDIA's tegrastats, used only where sysfs has no power sensor (for example a container without the host's /sys).

It prints one line per interval, whose content depends on board, release and rights:

    … GR3D_FREQ 0%@[305] … cpu@48.562C … VDD_IN 5251mW/8535mW …      JetPack 6; "now/mean since its start"
    … GR3D_FREQ 0%@[0,0] …                                            AGX Orin; no gpu@ while the GPU is off
    … GPU@-256C … NC 0mW/0mW …                                        JetPack 5: off; not connected
    … cpu@52.9C/52.9C … VDD_GPU 0mW/0mW/0mW …                         JetPack 7

Running the program and parsing its output are separate: `parse` is a pure function of one line.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
import time
import weakref
from functools import partial
from typing import Dict, List, Optional

from edgeprune_device.probes import sysfs
from edgeprune_device.probes.channel import Channel

__all__ = ["fallback", "parse"]

_FIRST_LINE_S = 5.0
_UNITS = {"power": "mW", "temperature": "C", "load": "share"}
_RAM = re.compile(r"[0-9]{1,7}/[0-9]{1,7}MB")
_RAIL = re.compile(r"[A-Z][A-Z0-9_]{1,31}")
_POWER = re.compile(r"([0-9]{1,6})mW(/[0-9]{1,6}mW){0,2}")
_CELSIUS = r"-?[0-9]{1,3}(?:\.[0-9]{1,3})?"
_TEMPERATURE = re.compile(rf"([A-Za-z][A-Za-z0-9_-]{{0,31}})@({_CELSIUS})C(?:/{_CELSIUS}C)?")
_LOAD = re.compile(r"([0-9]{1,3})%(@.*)?")
_MOST_MW, _COLDEST_C, _HOTTEST_C = 300000, -60, 150


def parse(line: str) -> Dict[str, float]:
    """Parse one line of tegrastats into its current values; sensors that are off are omitted.

    An incomplete line (without RAM, or with a duplicate name) gives no value.

    Args:
        line: The line.

    Returns:
        {"power.VDD_IN": 5251, "temperature.cpu": 48.562, "load.gpu": 0.0, …}.
    """
    words = line.split()
    readings: Dict[str, float] = {}
    if not any(word == "RAM" and _RAM.fullmatch(after) for word, after in zip(words, words[1:])):
        return {}
    names: List[str] = []
    for word, after in zip(words, [*words[1:], ""]):
        power, temperature = _POWER.fullmatch(after), _TEMPERATURE.fullmatch(word)
        if word == "RAM":
            names.append(word)
        elif word == "GR3D_FREQ":
            names.append(word)
            load = _LOAD.fullmatch(after)
            if load and int(load.group(1)) <= 100:
                readings["load.gpu"] = int(load.group(1)) / 100
        elif power and _RAIL.fullmatch(word) and word != "NC":
            names.append(word)
            milliwatts = int(power.group(1))
            if milliwatts <= _MOST_MW and not (milliwatts == 0 and word in ("VDD_IN", "VIN")):
                readings[f"power.{word}"] = milliwatts
        elif temperature:
            names.append(temperature.group(1).lower())
            celsius = float(temperature.group(2))
            if _COLDEST_C <= celsius <= _HOTTEST_C:
                readings[f"temperature.{sysfs.clean(names[-1])}"] = celsius
    return readings if len(set(names)) == len(names) else {}


def fallback(interval_s: float) -> List[Channel]:
    """Channels for the values of tegrastats' first line; empty without tegrastats.

    The program starts with the first reading.

    Args:
        interval_s: Interval of the program, s.
    """
    program = shutil.which("tegrastats")
    if program is None:
        return []
    command = [program, "--interval", str(max(100, round(interval_s * 1000)))]
    trial = _Tegrastats(command, interval_s)
    readings = trial.first()
    trial.close()
    reader = _Tegrastats(command, interval_s)
    channels = []
    for key in readings:
        kind, _, name = key.partition(".")
        channels.append(Channel(kind, name, _UNITS[kind], partial(reader.value, key)))
    return channels


class _Tegrastats:
    """The running program and its newest line."""

    def __init__(self, command: List[str], interval_s: float) -> None:
        self._command = command
        self._oldest_s = max(2.0, 3 * interval_s)  # an older value is not current
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._started = False
        self._rest = b""
        self._values: Dict[str, float] = {}
        self._at_s = 0.0

    def first(self) -> Dict[str, float]:
        """The values of the first line; empty if none arrives in time."""
        until = time.monotonic() + _FIRST_LINE_S
        while not self._values and time.monotonic() < until:
            if not self._take(until - time.monotonic()):
                break
        return self._values

    def value(self, key: str) -> Optional[float]:
        """The newest value; None if it is too old."""
        self._take(0.0)
        return self._values.get(key) if time.monotonic() - self._at_s <= self._oldest_s else None

    def close(self) -> None:
        """End the program."""
        if self._process is not None:
            _stop(self._process)

    def _take(self, timeout_s: float) -> bool:
        """Read the available lines. False: the program is missing or has ended."""
        if not self._started:
            self._started = True
            with contextlib.suppress(OSError):
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
                # If this process is killed, tegrastats ends at its next line, because its pipe is closed.
                weakref.finalize(self, _stop, self._process)
        output = None if self._process is None else self._process.stdout
        if output is None or output.closed:
            return False
        descriptor = output.fileno()
        while select.select([descriptor], [], [], max(0.0, timeout_s))[0]:
            timeout_s = 0.0
            part = os.read(descriptor, 1 << 16)
            if not part:
                return False
            *lines, self._rest = (self._rest + part)[-(1 << 16) :].split(b"\n")
            if lines:
                # An invalid line also counts, because it makes the previous values outdated.
                self._values, self._at_s = parse(lines[-1].decode("utf-8", "replace")), time.monotonic()
        return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
