"""`run/status.json`, the status of the service: its release, its state, and its frames.

    {"schema_version": 1, "pid": 812, "boot_id": "2f…", "boot_s": 93.1, "release": "9f86d081884c7d65", "state":
     "running", "frames": 1704, "last_frame_boot_s": 93.0, "restarts": 0, "reason": null, "since_boot_s": 31.4, …}

Times are seconds since the boot, as /proc/uptime counts them, and `boot_id` names the boot, so a file from before a
power cut is recognised. The file is written beside and renamed, but not synced, because it is of no use after a power
cut.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, Optional

from edgeprune_device import clock, strict_json
from edgeprune_device.errors import InputError

__all__ = ["boot_s", "read", "write"]

_MAX_BYTES = 1 << 16


def boot_s() -> float:
    """Seconds since the boot."""
    return round(time.clock_gettime(time.CLOCK_BOOTTIME), 3)


def read(path: Path, fresh_s: float) -> Optional[Dict[str, Any]]:
    """Read the status of a running service.

    Args:
        path: The file.
        fresh_s: Oldest age of the status, s.

    Returns:
        The status; None where there is none of a running service that is fresh.
    """
    now = clock.now()
    try:
        with open(path, "rb") as stream:
            said = strict_json.loads(stream.read(_MAX_BYTES), str(path))
        fresh = said["boot_id"] == now["boot_id"] and -1 < now["boottime_s"] - said["boot_s"] < fresh_s
        with suppress(PermissionError):  # alive, and another user's
            os.kill(int(said["pid"]), 0)
    except (OSError, InputError, KeyError, TypeError, ValueError, OverflowError):
        return None
    return said if fresh else None


def write(path: Path, data: Dict[str, Any]) -> None:
    """Write the status.

    Args:
        path: The file.
        data: The status, without "schema_version".

    Raises:
        OSError: The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="ascii") as stream:
        stream.write(json.dumps({"schema_version": 1, **data}) + "\n")
    os.replace(str(temporary), str(path))
