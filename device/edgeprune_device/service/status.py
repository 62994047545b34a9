"""`run/status.json`, the status of the service: its release, its state, and its frames.

    {"schema_version": 1, "pid": 812, "boot_id": "2f…", "boot_s": 93.1, "release": "9f86d081884c7d65", "state":
     "running", "frames": 1704, "last_frame_boot_s": 93.0, "restarts": 0, "pace": {"stages_ms": {"decode": 1.3, "pre":
     2.1, "infer": 11.4, "post": 0.4}, "age_ms": 17.4, "slow_stage": null}, "reason": null, "since_boot_s": 31.4, …}

Times are seconds since boot, as in /proc/uptime, and `boot_id` identifies the boot, so that a file from before a power
cut is recognised. The file is replaced by a rename but not synced, because it is useless after a power cut.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Optional, TypedDict, cast

from edgeprune_device import clock, files, schema, strict_json
from edgeprune_device.errors import InputError
from edgeprune_device.printable import printable
from edgeprune_device.service.pace import PaceStatus

__all__ = ["LOCK", "Status", "boot_s", "read", "write"]

#: Name of the file beside the status that the service keeps open and locked.
LOCK = "lock"
_MAX_BYTES = 1 << 16


class Status(TypedDict):
    """The status of the service, without the version of its schema.

    Attributes:
        pid: Process id of the supervisor.
        boot_id: Id of the boot; None: not known.
        boot_s: When the status was written.
        release: ID of the release; None: there is none.
        state: "starting", "running", "waiting" or "stopped".
        frames: Frames of the worker.
        last_frame_boot_s: When the last frame was completed; None: no frame yet.
        restarts: How often a worker crashed or hung.
        lost_lines: Lines of the worker that could not be written.
        pace: Times of the worker's stages; None: no frame yet. Files of earlier versions lack it.
        reason: Why the service does not run, or why the last worker ended, in one line.
        since_boot_s: When this state began.
    """

    pid: int
    boot_id: Optional[str]
    boot_s: float
    release: Optional[str]
    state: str
    frames: int
    last_frame_boot_s: Optional[float]
    restarts: int
    lost_lines: int
    pace: Optional[PaceStatus]
    reason: Optional[str]
    since_boot_s: float


def boot_s() -> float:
    """Seconds since the boot."""
    return round(time.clock_gettime(time.CLOCK_BOOTTIME), 3)


def read(path: Path, fresh_s: float) -> Optional[Status]:
    """Read the status of a running service.

    Args:
        path: The file.
        fresh_s: Maximum age of the status, s.

    Returns:
        The status; None unless the service is running and its status is fresh. Its "pid" belongs to a process that has
            the service's lock open.
    """
    now = clock.now()
    try:
        files.check_file(path)
        with open(path, "rb") as stream:
            data = strict_json.loads(stream.read(_MAX_BYTES), str(path))
        if isinstance(data, dict) and isinstance(data.get("reason"), str):
            data["reason"] = printable(data["reason"])
        status = cast(Status, schema.check("status", data, str(path)))
        boottime_s, same_boot = now["boottime_s"], status["boot_id"] == now["boot_id"]
        fresh = boottime_s is not None and same_boot and -1 < boottime_s - status["boot_s"] < fresh_s
        return status if fresh and _serves(status["pid"], path) else None
    except (OSError, InputError):
        return None


def _serves(pid: int, path: Path) -> bool:
    """Whether a process is the service that writes this status. Its number alone does not prove that."""
    try:
        return files.has_open(pid, path.with_name(LOCK))
    except PermissionError:  # another user's process: it must at least belong to the owner of the file
        return os.stat(f"/proc/{pid}").st_uid == os.stat(str(path)).st_uid


def write(path: Path, data: Status) -> None:
    """Write the status.

    Args:
        path: The file.
        data: The status.

    Raises:
        OSError: The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="ascii") as stream:
        stream.write(json.dumps({"schema_version": 1, **data}) + "\n")
    os.replace(str(temporary), str(path))
