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

import importlib
import pkgutil
from pathlib import Path
from typing import Dict, List, Optional

from edgeprune_device.probes import tegrastats
from edgeprune_device.probes.channel import Channel
from edgeprune_device.probes.monitor import Monitor
from edgeprune_device.probes.series import Series
from edgeprune_device.probes.sysfs import sysroot

__all__ = ["Channel", "Monitor", "Series", "discover", "sysroot"]

_FIRST = "power"  # read first in each round: its time stamp matters most


def discover(root: Optional[Path] = None, interval_s: float = 0.2) -> List[Channel]:
    """All that this board has, each with a key of its own. Where sysfs tells no power, NVIDIA's tegrastats is asked,
    every `interval_s`, if there is one."""
    root = sysroot() if root is None else root
    names = sorted((module.name for module in pkgutil.iter_modules(__path__)), key=lambda name: (name != _FIRST, name))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    found = [channel for module in modules if hasattr(module, "channels") for channel in module.channels(root)]
    if not any(channel.kind == "power" for channel in found):
        kinds = {channel.kind for channel in found}
        found = [channel for channel in tegrastats.fallback(interval_s) if channel.kind not in kinds] + found
    return _distinct(found)


def _distinct(channels: List[Channel]) -> List[Channel]:
    """A second "power.VDD_IN" becomes "power.VDD_IN#2": neither hides the other."""
    seen: Dict[str, int] = {}
    result = []
    for channel in channels:
        seen[channel.key] = seen.get(channel.key, 0) + 1
        n = seen[channel.key]
        result.append(channel if n == 1 else channel._replace(name=f"{channel.name}#{n}"))
    return result
