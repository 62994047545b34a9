"""The spool keeps reports until they are delivered. kill -9, a power cut or a full disk loses and duplicates none.

    ~/.local/state/edgeprune/spool/        $EDGEPRUNE_SPOOL, or edgeprune/spool below $XDG_STATE_HOME
        pending/<SHA-256 of the file>.json     complete, on the disk, not yet collected
        delivered/<the same>.json              the host has stored it on its disk

A file is written to a temporary name, synced and renamed, and its folder is synced, so it is complete or absent. Its
name is the hash of its content, so storing a report twice gives one file. Names that begin with a dot are unfinished
and ignored. `ls`, `tail -c` and `mv` are enough to collect the reports.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Union

from edgeprune_device.errors import InputError, SignatureError, reason
from edgeprune_device.files import lock, make_folder, sha256, sync_folder, write_atomic
from edgeprune_device.option import named

__all__ = ["Spool", "SpoolEntry"]

_NAME = re.compile(r"([0-9a-f]{64})\.json")


class SpoolEntry(NamedTuple):
    """One report in the spool.

    Attributes:
        id: SHA-256 of the file.
        size_bytes: Size of the file.
        path: The file.
        delivered: Whether the host has collected the report.
    """

    id: str
    size_bytes: int
    path: Path
    delivered: bool


class Spool:
    """The spool of this user, or another folder. The first `put` creates the folder.

    Args:
        folder: The folder; None: this user's.

    Raises:
        InputError: The user has no home folder.
    """

    def __init__(self, folder: Optional[Union[str, Path]] = None):
        self.folder = Path(folder) if folder is not None else _default()
        self._reserved: Optional[int] = None

    def put(self, report: bytes) -> str:
        """Store a report; on return it is on the disk.

        Args:
            report: Bytes of the report.

        Returns:
            The report's id.

        Raises:
            InputError: The disk is full, or the folder cannot be written; the report is then not in the spool.
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
            InputError: The report does not exist.
            SignatureError: The file's content has changed since it was put.
        """
        for entry in self.entries():
            if entry.id == identity:
                data = entry.path.read_bytes()
                if hashlib.sha256(data).hexdigest() != identity:
                    raise SignatureError(
                        f"{entry.path}: damaged (the content does not match the SHA-256 in the name); remove the file"
                    )
                return data
        raise InputError(f"{self.folder}: no such report: {identity}")

    def entries(self) -> List[SpoolEntry]:
        """Every report, the pending ones first; each group is sorted by id, because the clock may be wrong."""
        entries = []
        for name, delivered in (("pending", False), ("delivered", True)):
            with suppress(OSError):
                for path in sorted((self.folder / name).iterdir()):
                    match = _NAME.fullmatch(path.name)
                    if match:
                        with suppress(OSError):  # delivered or pruned at this moment, or a link to nowhere
                            status = path.stat()
                            if stat.S_ISREG(status.st_mode):
                                entries.append(SpoolEntry(match.group(1), status.st_size, path, delivered))
        return entries

    def copy_pending(self, to: Path) -> List[str]:
        """Copy the pending reports to a folder, such as a USB stick; they stay pending.

        A damaged copy, for example after a stick was removed too early, is written again.

        Args:
            to: The folder.

        Returns:
            The ids of the newly copied reports.

        Raises:
            SignatureError: A report in the spool is damaged; the others have been copied.
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
        """Remove the delivered reports, and return their ids."""
        with self._locked():
            gone = [entry for entry in self.entries() if entry.delivered]
            for entry in gone:
                entry.path.unlink()
        return [entry.id for entry in gone]

    def reserve(self, size_bytes: int) -> None:
        """Reserve disk space until the next `put`, so that the next report has room.

        The file has no name, so the kernel frees the space when this process ends, even after kill -9.

        Args:
            size_bytes: Size to reserve.

        Raises:
            InputError: The disk does not have enough space.
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
                f"{self.folder}: too little free space for this run's report of about "
                f"{size_bytes / 1e6:.1f} MB ({reason(error)}); free some space, measure for less time, or set "
                f"{named('no_spool', True)}"
            ) from error

    def release(self) -> None:
        """Release the reserved space, if there is any."""
        if self._reserved is not None:
            os.close(self._reserved)
            self._reserved = None

    def _make(self) -> None:
        try:
            for name in ("pending", "delivered"):
                make_folder(self.folder / name)
            sync_folder(self.folder)
            sync_folder(self.folder.parent)
        except OSError as error:
            raise InputError(
                f"{self.folder}: the spool cannot be created ({reason(error)}); "
                "set EDGEPRUNE_SPOOL to a writable folder"
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let only one process write at a time. Unfinished files of earlier processes are removed."""
        self._make()
        try:
            descriptor = os.open(str(self.folder / ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({reason(error)})") from error
        try:
            lock(descriptor)
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
        raise InputError("home folder: not found for this user; set EDGEPRUNE_SPOOL to a private folder") from error
