"""Time stamps from clocks that cannot be set: without a network, a drone's date is wrong after each power-up.

A boot's ID and the seconds since that boot are always right. A host that asks a drone for both before it is switched
off can compute when its reports were made.
"""

from __future__ import annotations

import ctypes
import re
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Optional, TypedDict

__all__ = ["BootTime", "now", "synchronized", "wall"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIME_ERROR = 5  # adjtimex(2): this clock has not been set


class BootTime(TypedDict):
    """The time since one boot. None: not known.

    Attributes:
        boot_id: Id of the boot.
        boottime_s: CLOCK_BOOTTIME, including suspension, as in /proc/uptime, s.
        synchronized: Whether the kernel considers the wall clock synchronized (NTP, PTP or similar).
    """

    boot_id: Optional[str]
    boottime_s: Optional[float]
    synchronized: Optional[bool]


def now() -> BootTime:
    """The time since this boot."""
    try:
        text = _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        text = ""
    boottime = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else None
    boot_id = text if re.fullmatch("[0-9a-f-]{36}", text) else None  # an emulated kernel may return any text
    return {"boot_id": boot_id, "boottime_s": boottime, "synchronized": synchronized()}


def wall() -> str:
    """The wall clock, which may be wrong, e.g. "2026-11-24T12:00:00Z"."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def synchronized() -> Optional[bool]:
    """Whether the kernel considers the wall clock synchronized; None if it does not report that."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))  # all zeros: a query without a change
    except (OSError, AttributeError):
        return None
    return None if state < 0 else bool(state != _TIME_ERROR)
