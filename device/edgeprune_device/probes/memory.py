"""Memory that is available to a new program, and used swap. On a Jetson the GPU shares this memory."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Dict, List, Optional

from edgeprune_device.probes import sysfs
from edgeprune_device.probes.channel import Channel

__all__ = ["channels", "parse_meminfo", "read"]

_LINE = re.compile(r"(MemTotal|MemAvailable|SwapTotal|SwapFree):\s+([0-9]{1,12}) kB")


def channels(root: Path) -> List[Channel]:
    """The channels "available" and "swap_used", in bytes."""
    if not (root / "proc/meminfo").exists():
        return []
    return [Channel("memory", name, "bytes", partial(_one, root, name)) for name in ("available", "swap_used")]


def read(root: Path) -> Dict[str, Optional[int]]:
    """Read {"total", "available", "swap_total", "swap_used"}, in bytes, None if not known."""
    return parse_meminfo(sysfs.text(root / "proc/meminfo") or "")


def parse_meminfo(content: str) -> Dict[str, Optional[int]]:
    """Parse /proc/meminfo into the result of `read`.

    An available size above the total, or free swap above the total swap, is invalid and gives None.
    """
    sizes = {}
    for entry in content.splitlines():
        match = _LINE.fullmatch(entry.strip())
        if match:
            sizes[match.group(1)] = int(match.group(2)) * 1024
    total, available = sizes.get("MemTotal"), sizes.get("MemAvailable")
    swap_total, swap_free = sizes.get("SwapTotal"), sizes.get("SwapFree")
    if total is None or (available is not None and available > total):
        available = None
    swap_used = None if swap_total is None or swap_free is None or swap_free > swap_total else swap_total - swap_free
    return {"total": total, "available": available, "swap_total": swap_total, "swap_used": swap_used}


def _one(root: Path, name: str) -> Optional[int]:
    return read(root)[name]
