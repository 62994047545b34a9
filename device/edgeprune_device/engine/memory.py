"""How much memory building an engine may take, on boards where 4 GB are all there is, for CPU and GPU together."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Optional

__all__ = ["available_bytes", "pools", "read_available"]

_MB = 1 << 20
_GB = 1 << 30
# Chosen, not measured on a Jetson: bounds between which a detector should find its tactics.
_WORKSPACE_MAX = 2 * _GB
_WORKSPACE_MIN = 128 * _MB
# Left, on an integrated GPU, for what the builder itself takes of the same memory (CUDA's context, kernels, two copies
# of the weights): an estimate, not measured on a Jetson.
_BUILDER = 768 * _MB
#: Where no GPU can be asked, because the engine is built for another machine.
AHEAD_OF_TIME = {"WORKSPACE": _GB}


def pools(free_bytes: int, integrated: bool) -> Dict[str, int]:
    """{"WORKSPACE": bytes, "TACTIC_DRAM": bytes} from what is free now.

    WORKSPACE is the most scratch memory that a layer may take, also when the engine runs later; half of what is free,
    so that the activations and the application fit beside it. TACTIC_DRAM is all that a tactic may take while it is
    tried; TensorRT's default is 75 % of the whole memory on an embedded board and all of it elsewhere, whatever else
    is running.

    >>> {name: size >> 20 for name, size in pools(2400 << 20, integrated=True).items()}    # a 4 GB board
    {'WORKSPACE': 816, 'TACTIC_DRAM': 1632}
    """
    left = max(free_bytes - (_BUILDER if integrated else 0), 0)
    workspace = min(max(left // 2, _WORKSPACE_MIN), _WORKSPACE_MAX)
    return {"WORKSPACE": workspace, "TACTIC_DRAM": max(left, 2 * _WORKSPACE_MIN)}


def available_bytes(meminfo: str) -> Optional[int]:
    """/proc/meminfo -> MemAvailable. On an integrated GPU this counts: the free memory that CUDA reports there leaves
    out what the page cache would give back."""
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def read_available() -> Optional[int]:
    """MemAvailable of this machine, now; None where it does not say."""
    try:
        return available_bytes(Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return None
