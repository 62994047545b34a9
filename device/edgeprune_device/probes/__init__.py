"""What the board tells about itself while something runs: power, heat, clocks, throttling, fan, memory.

    with probes.Monitor() as monitor:
        ...                                   # what is measured
    series = monitor.series()                 # every sample, or None where there is nothing to read
    summary.power(series, idle, load, frames) # pure functions of it

Adding a probe is adding one file here that has `channels(root) -> [Channel]`. Nothing raises for what a board does not
have; `sysfs` says how files are read. Knows nothing of models, and imports nothing but Python's own library: the
monitor's process is small and starts fast.
"""

from __future__ import annotations

from edgeprune_device.probes.channel import Channel
from edgeprune_device.probes.discovery import discover
from edgeprune_device.probes.monitor import Monitor
from edgeprune_device.probes.series import Series
from edgeprune_device.probes.sysfs import sysroot

__all__ = ["Channel", "Monitor", "Series", "discover", "sysroot"]
