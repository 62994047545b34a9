"""How much memory building an engine may take, on boards where 4 GB are all there is, for CPU and GPU together."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Optional

__all__ = ["available_bytes", "pools", "read_available"]

_MB = 1 << 20
_GB = 1 << 30
# A detector's layers ask for some tens of MB of scratch; more only serves tactics that are hardly ever chosen.
_WORKSPACE_MAX = 2 * _GB
_WORKSPACE_MIN = 128 * _MB
# What the builder itself takes of the same memory on an integrated GPU: CUDA's context, the kernels, two copies of the
# weights.
_BUILDER = 768 * _MB
#: Where no GPU can be asked, because the engine is built for another machine.
AHEAD_OF_TIME = {"WORKSPACE": _GB}


def pools(free_bytes: int, integrated: bool) -> Dict[str, int]:
    """{"WORKSPACE": bytes, "TACTIC_DRAM": bytes} from what is free now.

    WORKSPACE is the scratch memory of one layer, and stays with the engine; half of what is free, so that the
    activations and the application fit beside it. TACTIC_DRAM is all that a tactic may take while it is tried; the
    default is the whole memory, and the builder then tries tactics that bring the out-of-memory killer.

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
