"""The host's store of reports: each report once, whole, and permanently.

    ~/.local/share/edgeprune/reports/      $EDGEPRUNE_REPORTS, or edgeprune/reports below $XDG_DATA_HOME
        <SHA-256 of the file>.json             a report, signed by a device that is enrolled here
        <the same>.receipt.json                its source, and the times of the collection and of the run
        unknown/  damaged/                     reports of devices that are not enrolled; damaged files
        incoming/                              partial transfers

A name is the hash of the content, so the same report twice is one file. The receipt is written first: every report has
one.
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
from edgeprune_device.errors import EdgepruneError, InputError, SignatureError
from edgeprune_device.files import sync_folder, write_atomic
from edgeprune_device.reports.report import BenchReport
from edgeprune_device.trust import keys

__all__ = ["Receipt", "Store", "Stored"]

_NAME = re.compile(r"([0-9a-f]{64})\.json")
_SHORTEST_PREFIX = 6


@dataclass(frozen=True)
class Receipt:
    """How a report came here.

    Example: Receipt("pilot@drone", "drone7", "2026-11-24T12:00:00Z", None, None).

    Attributes:
        source: A drone or a folder.
        device: The device's name here; None where its key is not enrolled.
        collected_at: The time of the collection.
        measured_at: The end of the run by this host's clock; None where it is not known.
        measured_by: The basis of `measured_at`.
        schema_version: Of the JSON form.
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
        receipt: Its receipt; None where the receipt is lost.
    """

    id: str
    path: Path
    receipt: Receipt | None

    def read(self) -> BenchReport:
        """Read and verify the report.

        Raises:
            InputError: The file is no report.
            SignatureError: The file has changed since it was stored.
        """
        data = self.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.id:
            raise SignatureError(f"{self.path}: damaged: its content is not what its name says; collect it again")
        report = BenchReport.from_json(strict_json.loads(data, str(self.path)), str(self.path))
        report.verify(str(self.path))
        return report


class Store:
    """A store of reports.

    Args:
        folder: The folder; None takes this user's own.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else _default()
        self.incoming = self.folder / "incoming"

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            InputError: They cannot be made.
        """
        try:
            for name in ("incoming", "unknown", "damaged"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            sync_folder(self.folder)
            sync_folder(self.folder.parent)
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be made ({str(error.strerror).lower()}); set EDGEPRUNE_REPORTS elsewhere"
            ) from error

    def __contains__(self, identity: str) -> bool:
        return _whole(self.folder / f"{identity}.json", identity)

    def put(self, data: bytes, receipt: Receipt) -> str:
        """Keep a verified report. It is on the disk when this returns; a second call does nothing.

        Args:
            data: The file's content.
            receipt: Its receipt. A report without `receipt.device` goes to unknown/.

        Returns:
            The report's id.

        Raises:
            InputError: There is no space or no permission; then nothing was stored.
        """
        self.prepare()
        identity = hashlib.sha256(data).hexdigest()
        folder = self.folder if receipt.device else self.folder / "unknown"
        if not _whole(folder / f"{identity}.json", identity):
            write_atomic(folder / f"{identity}.receipt.json", strict_json.pretty(asdict(receipt)), mode=0o644)
            write_atomic(folder / f"{identity}.json", data, mode=0o644)
        if receipt.device:
            for name in (f"{identity}.json", f"{identity}.receipt.json"):
                with suppress(FileNotFoundError):
                    (self.folder / "unknown" / name).unlink()
        return identity

    def put_damaged(self, data: bytes, name: str) -> Path:
        """Keep a damaged file for inspection."""
        self.prepare()
        return write_atomic(self.folder / "damaged" / name, data, mode=0o644)

    def entries(self) -> list[Stored]:
        """Every report, the latest first, by the time of its run or else of its collection."""
        found = []
        with suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                match = _NAME.fullmatch(path.name)
                if match:
                    found.append(Stored(match[1], path, _receipt(path)))
        return sorted(found, key=lambda stored: (_when(stored), stored.id), reverse=True)

    def find(self, prefix: str) -> Stored:
        """The report whose id begins with `prefix`.

        Raises:
            InputError: There is none, or there are several.
        """
        if not re.fullmatch(f"[0-9a-f]{{{_SHORTEST_PREFIX},64}}", prefix):
            raise InputError(f"{prefix}: not the id of a report (at least {_SHORTEST_PREFIX} hexadecimal digits)")
        found = [stored for stored in self.entries() if stored.id.startswith(prefix)]
        if len(found) != 1:
            few = "no report has such an id" if not found else f"{len(found)} reports have such an id: give more of it"
            raise InputError(f"{prefix}: {few} (edgeprune reports lists them)")
        return found[0]

    def promote(self) -> list[str]:
        """Take over the reports of unknown/ whose device is enrolled by now.

        Returns:
            Their ids.
        """
        promoted = []
        names = keys.enrolled()
        for path in sorted((self.folder / "unknown").glob("*.json")):
            match = _NAME.fullmatch(path.name)
            if match is None:
                continue
            with suppress(EdgepruneError):  # an unreadable report stays where it is
                report = Stored(match[1], path, None).read()
                name = names.get(keys.fingerprint(report.verify()), (None,))[0]
                old = _receipt(path)
                if name is not None and old is not None:
                    promoted.append(self.put(path.read_bytes(), Receipt(**{**asdict(old), "device": name})))
        return promoted


def _whole(path: Path, identity: str) -> bool:
    """Whether the file exists and its content still has this hash; if not, the next one takes its place."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == identity
    except OSError:
        return False


def _receipt(path: Path) -> Receipt | None:
    """The receipt beside a report; None where it is lost or damaged."""
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
        raise InputError("this user has no home folder: set EDGEPRUNE_REPORTS to a folder of your own") from error
