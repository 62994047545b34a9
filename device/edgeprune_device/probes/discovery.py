"""Finds the channels of this board, with all modules of this folder that have `channels(root)`."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Optional

from edgeprune_device import plugins
from edgeprune_device.probes import tegrastats
from edgeprune_device.probes.channel import Channel
from edgeprune_device.probes.sysfs import sysroot

__all__ = ["discover"]

_FIRST = "power"  # read first in each round: its time stamp must be the most exact


def discover(root: Optional[Path] = None, interval_s: float = 0.2) -> List[Channel]:
    """All channels of this board, each with a unique key.

    If sysfs has no power sensor, NVIDIA's tegrastats is used, if installed.

    Args:
        root: Root of the file system, by default `sysroot()`.
        interval_s: Interval of tegrastats, s.
    """
    root = sysroot() if root is None else root
    names = sorted(plugins.names([str(Path(__file__).parent)]), key=lambda name: name != _FIRST)
    modules = [plugins.load(__package__, name) for name in names]
    channels: List[Channel] = [
        channel for module in modules if hasattr(module, "channels") for channel in module.channels(root)
    ]
    if not any(channel.kind == "power" for channel in channels):
        kinds = {channel.kind for channel in channels}
        channels = [channel for channel in tegrastats.fallback(interval_s) if channel.kind not in kinds] + channels
    return _distinct(channels)


def _distinct(channels: List[Channel]) -> List[Channel]:
    """Make the keys unique: a second "power.VDD_IN" becomes "power.VDD_IN#2"."""
    seen: Dict[str, int] = {}
    result = []
    for channel in channels:
        seen[channel.key] = seen.get(channel.key, 0) + 1
        n = seen[channel.key]
        result.append(channel if n == 1 else channel._replace(name=f"{channel.name}#{n}"))
    return result
