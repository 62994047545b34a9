"""Sensors that are read while a program runs: power, temperature, clocks, throttling, fan, memory.

    with probes.Monitor() as monitor:
        ...                                   # the measurement
    series = monitor.series()                 # every sample, or None without sensors
    summary.power(series, idle, load, frames) # pure functions of the samples

To add a probe, add one file here with `channels(root) -> [Channel]`. A missing sensor never raises; `sysfs` describes
how files are read. The package imports only Python's standard library and no models, so that the monitor's process is
small and starts fast.
"""

from __future__ import annotations

from edgeprune_device.probes.channel import Channel
from edgeprune_device.probes.discovery import discover
from edgeprune_device.probes.monitor import Monitor
from edgeprune_device.probes.series import Series
from edgeprune_device.probes.sysfs import sysroot

__all__ = ["Channel", "Monitor", "Series", "discover", "sysroot"]
