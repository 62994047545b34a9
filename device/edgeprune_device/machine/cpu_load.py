"""CPU load of other programs: all CPU time minus that of this process and its descendants.

The load average is not used, because it still includes programs that ended a minute ago, such as the previous run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

__all__ = ["CpuTimes", "others", "read"]

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class CpuTimes(NamedTuple):
    """CPU times since boot, over all cores, s.

    Attributes:
        total: All time, including idle time.
        busy: Busy time, including time taken by a hypervisor.
        own: Time of this process and its descendants, including ended ones.
    """

    total: float
    busy: float
    own: float


def read(root: Path = Path("/")) -> Optional[CpuTimes]:
    """Read the CPU times now.

    Args:
        root: Root of the file system.

    Returns:
        The times; None if the machine does not report them.
    """
    try:
        total, busy = parse_stat((root / "proc/stat").read_text(encoding="ascii"))
        tree: Dict[int, List[int]] = {}
        spent = {}
        for folder in (root / "proc").iterdir():
            if folder.name.isdigit():
                try:
                    parent, ticks = parse_process((folder / "stat").read_text(encoding="utf-8", errors="replace"))
                except (OSError, ValueError):
                    continue  # the process has ended
                tree.setdefault(parent, []).append(int(folder.name))
                spent[int(folder.name)] = ticks
        return CpuTimes(total / _TICKS, busy / _TICKS, sum(spent.get(pid, 0) for pid in _family(tree)) / _TICKS)
    except (OSError, ValueError):
        return None


def others(before: Optional[CpuTimes], after: Optional[CpuTimes]) -> Optional[float]:
    """The share of all cores that other programs used between two readings, in [0, 1]; None if not known."""
    if before is None or after is None or after.total <= before.total:
        return None
    share = (after.busy - before.busy - (after.own - before.own)) / (after.total - before.total)
    return min(max(share, 0.0), 1.0)


def parse_stat(text: str) -> Tuple[int, int]:
    """Parse /proc/stat into (total, busy) ticks.

    Raises:
        ValueError: The text is not /proc/stat.
    """
    words = text.split("\n", 1)[0].split()
    if len(words) < 9 or words[0] != "cpu":
        raise ValueError("not /proc/stat")
    ticks = [int(word) for word in words[1:9]]  # guest time, which follows, is included in user time
    return sum(ticks), sum(ticks) - ticks[3] - ticks[4]  # idle, iowait


def parse_process(text: str) -> Tuple[int, int]:
    """Parse /proc/PID/stat into (parent's pid, ticks of the process and of its children that have ended).

    Raises:
        ValueError: The text is not /proc/PID/stat.
    """
    words = text[text.rindex(")") + 1 :].split()  # the preceding command may contain any text
    if len(words) < 15:
        raise ValueError("not /proc/PID/stat")
    return int(words[1]), sum(int(word) for word in words[11:15])


def _family(tree: Dict[int, List[int]]) -> List[int]:
    pids = [os.getpid()]
    for pid in pids:
        pids += tree.get(pid, [])
    return pids
