"""The spool keeps reports until they are delivered. kill -9, a power cut or a full disk neither loses nor doubles one.

    ~/.local/state/edgeprune/spool/        $EDGEPRUNE_SPOOL, or edgeprune/spool below $XDG_STATE_HOME
        pending/<SHA-256 of the file>.json     complete, on the disk, not yet with the host
        delivered/<the same>.json              the host has it on its own disk

A file is written beside, synced and renamed, and its folder is synced, so it is complete or absent. Its name is the
hash of its content, so the same report twice is one file. Names that begin with a dot are work in progress and are
ignored. `ls`, `tail -c` and `mv` are enough to collect the reports.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Union

from edgeprune_device.errors import InputError, SignatureError
from edgeprune_device.files import sha256, sync_folder, write_atomic

__all__ = ["Spool", "SpoolEntry"]

_NAME = re.compile(r"([0-9a-f]{64})\.json")


class SpoolEntry(NamedTuple):
    """One report in the spool.

    Attributes:
        id: SHA-256 of the file.
        size_bytes: Size of the file.
        path: The file.
        delivered: Whether the host has it.
    """

    id: str
    size_bytes: int
    path: Path
    delivered: bool


class Spool:
    """The spool of this user, or another folder. No folder is made before the first `put`.

    Args:
        folder: The folder; None: this user's.

    Raises:
        InputError: The user has no home folder.
    """

    def __init__(self, folder: Optional[Union[str, Path]] = None):
        self.folder = Path(folder) if folder is not None else _default()
        self._reserved: Optional[int] = None

    def put(self, report: bytes) -> str:
        """Keep a report; on return it is on the disk.

        Args:
            report: Bytes of the report.

        Returns:
            The report's id.

        Raises:
            InputError: There is no space, or the folder cannot be written; the report is then not in the spool.
        """
        identity = hashlib.sha256(report).hexdigest()
        with self._locked():
            self.release()
            if not any(entry.id == identity for entry in self.entries()):
                write_atomic(self.folder / "pending" / f"{identity}.json", report, mode=0o644)
        return identity

    def read(self, identity: str) -> bytes:
        """Read a report.

        Args:
            identity: The report's id.

        Raises:
            InputError: There is no such report.
            SignatureError: The file's content has changed since it was put.
        """
        for entry in self.entries():
            if entry.id == identity:
                data = entry.path.read_bytes()
                if hashlib.sha256(data).hexdigest() != identity:
                    raise SignatureError(f"{entry.path}: damaged: its content is not what its name says")
                return data
        raise InputError(f"{self.folder}: has no report {identity}")

    def entries(self) -> List[SpoolEntry]:
        """Every report, the pending ones first; each group in the order of its ids, as the clock may be wrong."""
        found = []
        for name, delivered in (("pending", False), ("delivered", True)):
            with suppress(OSError):
                for path in sorted((self.folder / name).iterdir()):
                    match = _NAME.fullmatch(path.name)
                    if match:
                        with suppress(FileNotFoundError):  # delivered, or pruned, at this moment
                            found.append(SpoolEntry(match.group(1), path.stat().st_size, path, delivered))
        return found

    def copy_pending(self, to: Path) -> List[str]:
        """Copy the pending reports to a folder, such as a USB stick; they stay pending here.

        A damaged copy, as after a stick was pulled out, is written again.

        Args:
            to: The folder.

        Returns:
            The ids that were not there yet.

        Raises:
            SignatureError: A report is damaged here; the others have been copied.
        """
        copied, damaged = [], []
        for entry in self.entries():
            target = to / f"{entry.id}.json"
            if entry.delivered or (target.exists() and sha256(target) == entry.id):
                continue
            try:
                write_atomic(target, self.read(entry.id), mode=0o644)
                copied.append(entry.id)
            except SignatureError as error:
                damaged.append(error)
        if damaged:
            raise damaged[0]
        return copied

    def prune(self) -> List[str]:
        """Remove the reports that the host has, and return their ids."""
        with self._locked():
            gone = [entry for entry in self.entries() if entry.delivered]
            for entry in gone:
                entry.path.unlink()
        return [entry.id for entry in gone]

    def reserve(self, size_bytes: int) -> None:
        """Reserve disk space until the next `put`, so that a future report has room.

        The space has no name: when this process ends, also by kill -9, the kernel frees it.

        Args:
            size_bytes: Size to reserve.

        Raises:
            InputError: There is not enough space.
        """
        self.release()
        self._make()
        path = str(self.folder / f".reserved.{os.getpid()}")
        try:
            self._reserved = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            os.unlink(path)
            os.posix_fallocate(self._reserved, 0, max(size_bytes, 1))
        except OSError as error:
            self.release()
            raise InputError(
                f"{self.folder}: no room for this run's report, about {size_bytes / 1e6:.1f} MB "
                f"({str(error.strerror or error).lower()}): free some, measure for less time, or use --no-spool"
            ) from error

    def release(self) -> None:
        """Release the reserved space, if there is any."""
        if self._reserved is not None:
            os.close(self._reserved)
            self._reserved = None

    def _make(self) -> None:
        try:
            for name in ("pending", "delivered"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            sync_folder(self.folder)
            sync_folder(self.folder.parent)
        except OSError as error:
            raise InputError(
                f"{self.folder}: the spool cannot be made ({str(error.strerror or error).lower()}); "
                "set EDGEPRUNE_SPOOL to a folder that can be written"
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let only one process write at a time; an unfinished file that it then finds is left over, and is removed."""
        self._make()
        try:
            descriptor = os.open(str(self.folder / ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({str(error.strerror or error).lower()})") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for path in (self.folder / "pending").glob(".*.tmp.json"):
                with suppress(OSError):
                    path.unlink()
            yield
        finally:
            os.close(descriptor)


def _default() -> Path:
    if os.environ.get("EDGEPRUNE_SPOOL"):
        return Path(os.environ["EDGEPRUNE_SPOOL"])
    if os.environ.get("XDG_STATE_HOME"):
        return Path(os.environ["XDG_STATE_HOME"]) / "edgeprune" / "spool"
    try:
        return Path.home() / ".local" / "state" / "edgeprune" / "spool"
    except RuntimeError as error:  # no HOME and no passwd entry, as in some containers
        raise InputError("this user has no home folder: set EDGEPRUNE_SPOOL to a folder of your own") from error
