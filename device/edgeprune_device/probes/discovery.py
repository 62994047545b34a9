"""The channels of this board, from every module beside this one that has `channels(root)`."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Dict, List, Optional

from edgeprune_device.probes import tegrastats
from edgeprune_device.probes.channel import Channel
from edgeprune_device.probes.sysfs import sysroot

__all__ = ["discover"]

_FIRST = "power"  # read first in each round: its time stamp matters most


def discover(root: Optional[Path] = None, interval_s: float = 0.2) -> List[Channel]:
    """All channels of this board, each with a unique key.

    Where sysfs has no power sensor, NVIDIA's tegrastats is used, if it is installed.

    Args:
        root: Root of the file system, by default `sysroot()`.
        interval_s: Interval of tegrastats, s.
    """
    root = sysroot() if root is None else root
    here = pkgutil.iter_modules([str(Path(__file__).parent)])
    names = sorted((module.name for module in here), key=lambda name: (name != _FIRST, name))
    modules = [importlib.import_module(f"{__package__}.{name}") for name in names]
    found = [channel for module in modules if hasattr(module, "channels") for channel in module.channels(root)]
    if not any(channel.kind == "power" for channel in found):
        kinds = {channel.kind for channel in found}
        found = [channel for channel in tegrastats.fallback(interval_s) if channel.kind not in kinds] + found
    return _distinct(found)


def _distinct(channels: List[Channel]) -> List[Channel]:
    """Make the keys unique: a second "power.VDD_IN" becomes "power.VDD_IN#2"."""
    seen: Dict[str, int] = {}
    result = []
    for channel in channels:
        seen[channel.key] = seen.get(channel.key, 0) + 1
        n = seen[channel.key]
        result.append(channel if n == 1 else channel._replace(name=f"{channel.name}#{n}"))
    return result
