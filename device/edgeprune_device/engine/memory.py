"""The memory limits of building an engine, for boards with as little as 4 GB for CPU and GPU together."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Optional

__all__ = ["available_bytes", "pools", "read_available"]

_MB = 1 << 20
_GB = 1 << 30
# Bounds with which a detector should find its tactics; chosen, not measured on a Jetson.
_WORKSPACE_MAX = 2 * _GB
_WORKSPACE_MIN = 128 * _MB
# Reserved on an integrated GPU for the builder itself, which uses the same memory (CUDA's context, kernels, two copies
# of the weights): an estimate, not measured on a Jetson.
_BUILDER = 768 * _MB
#: Used without a GPU, for an engine that is built for another machine.
AHEAD_OF_TIME = {"WORKSPACE": _GB}


def pools(free_bytes: int, integrated: bool) -> Dict[str, int]:
    """The sizes of TensorRT's memory pools, from the currently free memory.

    WORKSPACE is the maximum scratch memory of a layer, also when the engine runs later. It is half of the free memory,
    which leaves room for the activations and the application. TACTIC_DRAM is the maximum memory of a tactic while it is
    tried. TensorRT's default is 75 % of all memory on an embedded board and all of it elsewhere, regardless of other
    programs.

    >>> {name: size >> 20 for name, size in pools(2400 << 20, integrated=True).items()}    # a 4 GB board
    {'WORKSPACE': 816, 'TACTIC_DRAM': 1632}

    Args:
        free_bytes: Free memory.
        integrated: Whether GPU and CPU share the memory.

    Returns:
        {"WORKSPACE": bytes, "TACTIC_DRAM": bytes}.
    """
    left = max(free_bytes - (_BUILDER if integrated else 0), 0)
    workspace = min(max(left // 2, _WORKSPACE_MIN), _WORKSPACE_MAX)
    return {"WORKSPACE": workspace, "TACTIC_DRAM": max(left, 2 * _WORKSPACE_MIN)}


def available_bytes(meminfo: str) -> Optional[int]:
    """Parse MemAvailable from /proc/meminfo, in bytes; None if it is missing.

    This is the relevant figure on an integrated GPU: the free memory that CUDA reports there excludes the memory that
    the page cache would release.
    """
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def read_available() -> Optional[int]:
    """MemAvailable of this machine now, in bytes; None if not known."""
    try:
        return available_bytes(Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return None
