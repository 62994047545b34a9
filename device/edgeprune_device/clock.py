"""Time stamps by clocks that cannot be set: without a network a drone has a wrong date after each power-up.

A boot's id and the seconds since that boot are always right. A host that asks a drone for both, before it is switched
off, can compute when its reports were made.
"""

from __future__ import annotations

import ctypes
import re
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, Optional

__all__ = ["now", "wall"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIME_ERROR = 5  # adjtimex(2): nothing has set this clock


def now() -> Dict[str, Any]:
    """The time by this boot: {"boot_id", "boottime_s", "synchronized"}, None where it is not known.

    "boottime_s" is CLOCK_BOOTTIME, suspension included, as /proc/uptime shows it. "synchronized" tells whether the
    kernel counts the wall clock as set by NTP, PTP or the like.
    """
    try:
        boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        boot_id = ""
    boottime = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else None
    boot_id = boot_id if re.fullmatch("[0-9a-f-]{36}", boot_id) else None  # an emulated kernel may say anything
    return {"boot_id": boot_id, "boottime_s": boottime, "synchronized": _synchronized()}


def wall() -> str:
    """The wall clock, right or wrong, e.g. "2026-11-24T12:00:00Z"."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _synchronized() -> Optional[bool]:
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))  # zeros: only ask
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR
