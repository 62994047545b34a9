"""The host's store of reports, which keeps each report once, complete and permanently.

    ~/.local/share/edgeprune/reports/      $EDGEPRUNE_REPORTS, or edgeprune/reports below $XDG_DATA_HOME
        <SHA-256 of the file>.json             a report, signed by a device that is enrolled here
        <the same>.receipt.json                its source, and the times of collection and of the run
        unknown/  damaged/                     reports of devices that are not enrolled; damaged files; both bounded
        incoming/                              partial transfers

A name is the hash of the content, so a report that is collected twice is one file. The receipt is written first, so
every report has one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeprune_device import strict_json
from edgeprune_device.errors import EdgepruneError, InputError, SignatureError, reason
from edgeprune_device.files import make_folder, sync_folder, write_atomic
from edgeprune_device.reports.report import MOST_BYTES, BenchReport
from edgeprune_device.trust import keys

__all__ = ["Receipt", "Store", "Stored"]

_NAME = re.compile(r"([0-9a-f]{64})\.json")
_SHORTEST_PREFIX = 6
#: Of unknown/ and of damaged/, each: the oldest files are removed first. A removed report still exists at its source.
MOST_APART, MOST_APART_BYTES = 1000, 256 << 20


@dataclass(frozen=True)
class Receipt:
    """The origin of a report.

    Example: Receipt("pilot@drone", "drone7", "2026-11-24T12:00:00Z", None, None).

    Attributes:
        source: A drone or a folder.
        device: The device's name here; None if its key is not enrolled.
        collected_at: The time of the collection.
        measured_at: The end of the run on this host's clock; None if it is not known.
        measured_by: The basis of `measured_at`.
        schema_version: The version of the JSON format.
    """

    source: str
    device: str | None
    collected_at: str
    measured_at: str | None
    measured_by: str | None
    schema_version: int = 1


@dataclass(frozen=True)
class Stored:
    """A report in the store.

    Attributes:
        id: The SHA-256 of the file, hexadecimal.
        path: The file.
        receipt: Its receipt; None if the receipt is lost.
    """

    id: str
    path: Path
    receipt: Receipt | None

    def read(self) -> BenchReport:
        """Read and verify the report.

        Raises:
            InputError: The file is not a report.
            SignatureError: The file has changed since it was stored.
        """
        data = self.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.id:
            raise SignatureError(
                f"{self.path}: damaged (the content does not match the hash in the file name); collect the report again"
            )
        report = BenchReport.from_bytes(data, str(self.path))
        report.verify(str(self.path))
        return report


class Store:
    """A store of reports.

    Args:
        folder: The folder; None takes the user's default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else _default()
        self.incoming = self.folder / "incoming"

    def prepare(self) -> None:
        """Create the folders.

        Raises:
            InputError: A folder cannot be created.
        """
        try:
            for name in ("incoming", "unknown", "damaged"):
                make_folder(self.folder / name)
            _bound(self.incoming, 2 * MOST_BYTES)  # what broken links left
            sync_folder(self.folder)
            sync_folder(self.folder.parent)
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be created ({reason(error)}); set EDGEPRUNE_REPORTS to another folder"
            ) from error

    def __contains__(self, identity: str) -> bool:
        return _whole(self.folder / f"{identity}.json", identity)

    def put(self, data: bytes, receipt: Receipt) -> str:
        """Keep a verified report. On return it is on the disk; a second call does nothing.

        Args:
            data: The file's content.
            receipt: Its receipt. A report without `receipt.device` goes to unknown/, which is bounded.

        Returns:
            The report's id.

        Raises:
            InputError: Space or permission is missing; nothing was stored.
        """
        self.prepare()
        identity = hashlib.sha256(data).hexdigest()
        folder = self.folder if receipt.device else self.folder / "unknown"
        if not _whole(folder / f"{identity}.json", identity):
            write_atomic(folder / f"{identity}.receipt.json", strict_json.pretty(asdict(receipt)), mode=0o644)
            write_atomic(folder / f"{identity}.json", data, mode=0o644)
        if not receipt.device:
            _bound(folder, MOST_APART_BYTES)
        if receipt.device:
            for name in (f"{identity}.json", f"{identity}.receipt.json"):
                with suppress(FileNotFoundError):
                    (self.folder / "unknown" / name).unlink()
        return identity

    def unknown(self, identity: str) -> Stored | None:
        """The report of this id in unknown/; None if it is missing or incomplete."""
        path = self.folder / "unknown" / f"{identity}.json"
        return Stored(identity, path, _receipt(path)) if _whole(path, identity) else None

    def damaged(self, name: str) -> Path | None:
        """The file of this name in damaged/; None if it does not exist."""
        path = self.folder / "damaged" / name
        return path if path.is_file() else None

    def put_damaged(self, data: bytes, name: str) -> Path:
        """Keep a damaged file for inspection, in damaged/, which is bounded; of a large one its begin."""
        self.prepare()
        path = write_atomic(self.folder / "damaged" / name, data[: MOST_APART_BYTES // 16], mode=0o644)
        _bound(path.parent, MOST_APART_BYTES)
        return path

    def entries(self) -> list[Stored]:
        """Every report, the latest first, sorted by the time of its run or else of its collection."""
        reports = []
        with suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                match = _NAME.fullmatch(path.name)
                if match:
                    reports.append(Stored(match[1], path, _receipt(path)))
        return sorted(reports, key=lambda stored: (_when(stored), stored.id), reverse=True)

    def find(self, prefix: str) -> Stored:
        """The report whose id begins with `prefix`.

        Raises:
            InputError: No report or more than one matches.
        """
        if not re.fullmatch(f"[0-9a-f]{{{_SHORTEST_PREFIX},64}}", prefix):
            raise InputError(
                f"{prefix}: invalid report id (expected at least {_SHORTEST_PREFIX} hexadecimal digits); edgeprune "
                "reports lists them"
            )
        matching = [stored for stored in self.entries() if stored.id.startswith(prefix)]
        if len(matching) != 1:
            few = "no report has this id"
            if matching:
                few = f"{len(matching)} reports have this id; give more digits"
            raise InputError(f"{prefix}: {few} (edgeprune reports lists them)")
        return matching[0]

    def promote(self) -> list[str]:
        """Move the reports out of unknown/ whose device is now enrolled.

        Returns:
            Their ids.
        """
        promoted = []
        names = keys.enrolled()
        for path in sorted((self.folder / "unknown").glob("*.json")):
            match = _NAME.fullmatch(path.name)
            if match is None:
                continue
            with suppress(EdgepruneError):  # an unreadable report is not moved
                report = Stored(match[1], path, None).read()
                name = names.get(keys.fingerprint(report.verify()), (None,))[0]
                old = _receipt(path)
                if name is not None and old is not None:
                    promoted.append(self.put(path.read_bytes(), Receipt(**{**asdict(old), "device": name})))
        return promoted


def _bound(folder: Path, most_bytes: int) -> None:
    """Remove the oldest files of a folder until it is within its bounds."""
    files, total = [], 0
    for path in folder.iterdir():
        with suppress(OSError):  # another process removes it at this moment
            status = path.stat()
            files.append((status.st_mtime_ns, path, status.st_size))
            total += status.st_size
    count = len(files)
    for _, path, size in sorted(files):
        if count <= MOST_APART and total <= most_bytes:
            return
        with suppress(OSError):
            path.unlink()
        count, total = count - 1, total - size


def _whole(path: Path, identity: str) -> bool:
    """Whether the file exists and its content has this hash; a damaged file is replaced by the next copy."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == identity
    except OSError:
        return False


def _receipt(path: Path) -> Receipt | None:
    """The receipt beside a report; None if it is lost or damaged."""
    beside = path.with_name(f"{path.stem}.receipt.json")
    text: Callable[[object], bool] = lambda value: value is None or isinstance(value, str)  # noqa: E731
    try:
        data = strict_json.loads(beside.read_bytes(), str(beside))
        receipt = Receipt(**data)
    except (OSError, InputError, TypeError):
        return None
    values = (receipt.source, receipt.device, receipt.collected_at, receipt.measured_at, receipt.measured_by)
    return receipt if all(map(text, values)) and receipt.schema_version == 1 else None


def _when(stored: Stored) -> str:
    receipt = stored.receipt
    return (receipt.measured_at or receipt.collected_at or "") if receipt else ""


def _default() -> Path:
    if os.environ.get("EDGEPRUNE_REPORTS"):
        return Path(os.environ["EDGEPRUNE_REPORTS"])
    base = os.environ.get("XDG_DATA_HOME")
    try:
        return (Path(base) if base else Path.home() / ".local" / "share") / "edgeprune" / "reports"
    except RuntimeError as error:
        raise InputError("home folder: not found for this user; set EDGEPRUNE_REPORTS to a folder") from error
