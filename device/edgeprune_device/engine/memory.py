"""How much memory building an engine may take, on boards with 4 GB for CPU and GPU together."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Optional

__all__ = ["available_bytes", "pools", "read_available"]

_MB = 1 << 20
_GB = 1 << 30
# Chosen, not measured on a Jetson: bounds between which a detector should find its tactics.
_WORKSPACE_MAX = 2 * _GB
_WORKSPACE_MIN = 128 * _MB
# Left on an integrated GPU for the builder itself, which uses the same memory (CUDA's context, kernels, two copies of
# the weights): an estimate, not measured on a Jetson.
_BUILDER = 768 * _MB
#: Where no GPU can be asked, because the engine is built for another machine.
AHEAD_OF_TIME = {"WORKSPACE": _GB}


def pools(free_bytes: int, integrated: bool) -> Dict[str, int]:
    """The sizes of TensorRT's memory pools, from the memory that is free now.

    WORKSPACE is the most scratch memory that a layer may take, also when the engine runs later. It is half of the free
    memory, so that the activations and the application fit beside it. TACTIC_DRAM is the most that a tactic may take
    while it is tried. TensorRT's default is 75 % of the whole memory on an embedded board and all of it elsewhere,
    regardless of other programs.

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
    """Parse MemAvailable from /proc/meminfo, in bytes; None where it is missing.

    This is the relevant figure on an integrated GPU: the free memory that CUDA reports there leaves out the memory that
    the page cache would give back.
    """
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def read_available() -> Optional[int]:
    """MemAvailable of this machine now, in bytes; None where it is not known."""
    try:
        return available_bytes(Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return None
