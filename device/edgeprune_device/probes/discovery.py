"""The channels that this board has: each file beside this one that has `channels(root)` is asked."""

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
    """All that this board has, each with a key of its own. Where sysfs tells no power, NVIDIA's tegrastats is asked,
    every `interval_s`, if there is one."""
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
    """A second "power.VDD_IN" becomes "power.VDD_IN#2": neither hides the other."""
    seen: Dict[str, int] = {}
    result = []
    for channel in channels:
        seen[channel.key] = seen.get(channel.key, 0) + 1
        n = seen[channel.key]
        result.append(channel if n == 1 else channel._replace(name=f"{channel.name}#{n}"))
    return result
