"""Reports from a drone, or from a copied folder, into the host's store: each once, whole, or not yet.

A drone needs no agent for it: its spool consists of files named by the SHA-256 of their content. A partial transfer
goes on where it stopped. A report is moved to delivered/ on the drone when it is on this disk and synced. Whatever
fails, no report is lost, and the names prevent duplicates.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple, Protocol

from edgeprune_device import clock, strict_json
from edgeprune_device.errors import GateError, InputError, SignatureError
from edgeprune_device.reports.report import BenchReport
from edgeprune_device.trust import keys
from nacl.signing import VerifyKey

from edgeprune.drones.ssh import Link, RemoteError, shown
from edgeprune.drones.store import Receipt, Store

__all__ = ["Drone", "Outcome", "ReportFolder", "collect"]

_MOST_BYTES = 1 << 29  # of one report; ten hours at 100 frames a second take 0.3 GB
_MOST_REPORTS = 10_000
_BATCH = 20  # reports acknowledged at once; a round trip for each is slow over a radio

#: Prints the boot id, the seconds since the boot, the spool (as in `edgeprune_device.reports.spool`), waiting reports.
_LIST = """
spool="${EDGEPRUNE_SPOOL:-${XDG_STATE_HOME:-$HOME/.local/state}/edgeprune/spool}"
cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo -
cut -d' ' -f1 /proc/uptime 2>/dev/null || echo -
printf '%s\\n' "$spool"
cd "$spool/pending" 2>/dev/null || exit 0
for file in *.json; do if [ -f "$file" ]; then echo "$(wc -c <"$file") $file"; fi; done
"""
_DELIVERED = """
cd "$1" || exit 1
mkdir -p delivered || exit 1
shift
for name; do if [ -f "pending/$name" ]; then mv -f "pending/$name" "delivered/$name" || exit 1; fi; done
"""


class Waiting(NamedTuple):
    """A report that waits in a spool.

    Attributes:
        name: Its file name there.
        id: Its SHA-256, hexadecimal, where the name states it; else None.
        size_bytes: Its size, bytes.
    """

    name: str
    id: str | None
    size_bytes: int


class Moment(NamedTuple):
    """A device's clock and this host's clock at one moment.

    Attributes:
        boot_id: The id of the device's boot; None where it is not known.
        boottime_s: Seconds since that boot; None where they are not known.
        host: This host's clock.
        within_s: The uncertainty of `host`, seconds.
    """

    boot_id: str | None
    boottime_s: float | None
    host: datetime
    within_s: float


class ReportSource(Protocol):
    """A source of reports. `title`: its name in messages."""

    title: str

    def look(self) -> tuple[list[Waiting], Moment]:
        """List the waiting reports, and read the clock there."""

    def fetch(self, waiting: Waiting, into: Path) -> bytes:
        """Fetch the content of a report.

        Args:
            waiting: The report.
            into: A folder for partial content.

        Raises:
            SignatureError: The report is damaged where it lies.
        """

    def delivered(self, names: list[str]) -> None:
        """Mark reports as delivered: they are on this host's disk."""


class Drone:
    """A spool behind a `Link`."""

    def __init__(self, link: Link) -> None:
        self._link, self.title, self._spool = link, link.target, ""

    def look(self) -> tuple[list[Waiting], Moment]:
        """List the waiting reports, and read the drone's clock.

        Raises:
            InputError: The drone does not state where its spool is.
            LinkError: The link failed for good.
        """
        self._link.connect()  # so that the round trip below is one
        began = time.monotonic()
        answer = self._link.run(_LIST)
        took = time.monotonic() - began
        host = datetime.now(timezone.utc) - timedelta(seconds=took / 2)
        lines = answer.decode("utf-8", "replace").split("\n")
        if len(lines) < 3 or not lines[2].startswith("/") or not lines[2].isprintable():
            raise InputError(f"{self.title}: does not say where its spool is ({shown(' '.join(lines))})")
        boot = lines[0] if re.fullmatch(r"[0-9a-f-]{36}", lines[0]) else None
        uptime = float(lines[1]) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", lines[1]) else None
        self._spool = lines[2]
        return list(_listed(lines[3:], self.title)), Moment(boot, uptime, host, took / 2)

    def fetch(self, waiting: Waiting, into: Path) -> bytes:
        """Fetch the content of a report; a partial transfer goes on.

        Raises:
            SignatureError: The report is too large, or damaged where it lies.
            LinkError: The link failed for good.
        """
        local = into / waiting.name
        if waiting.size_bytes > _MOST_BYTES:
            raise SignatureError(f"{self.title}: {waiting.size_bytes} bytes are no report")
        remote = f"{self._spool}/pending/{waiting.name}"
        for _ in range(2):
            with suppress(FileNotFoundError):  # another collect here has just taken it into the store
                data = local.read_bytes()
                if hashlib.sha256(data).hexdigest() == waiting.id:
                    return data
            try:
                self._link.get(remote, local, waiting.size_bytes, waiting.id)
            except RemoteError as error:
                if self._link.run('[ ! -e "$1" ] || echo there', remote).strip() == b"there":
                    raise SignatureError(str(error)) from error  # its card cannot read the file; others may be whole
                raise _FetchedElsewhere(str(error)) from error
        return local.read_bytes()

    def delivered(self, names: list[str]) -> None:
        """Move reports to delivered/ on the drone."""
        self._link.run(_DELIVERED, self._spool, *names)


class ReportFolder:
    """A stick, a copied spool, or this machine's own spool: nothing in it is changed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.title = folder, str(folder)

    def look(self) -> tuple[list[Waiting], Moment]:
        """List the reports in the folder, and read this machine's clock."""
        places = [self.folder / name for name in ("pending", "delivered") if (self.folder / name).is_dir()]
        found = [
            path
            for place in places or [self.folder]
            for path in sorted(place.glob("*.json"))
            if path.name[0] != "." and path.is_file()
        ]
        now = clock.now()
        moment = Moment(now["boot_id"], now["boottime_s"], datetime.now(timezone.utc), 0.0)
        named = ((path, re.fullmatch(r"([0-9a-f]{64})\.json", path.name)) for path in found)
        return [
            Waiting(str(path.relative_to(self.folder)), match[1] if match else None, path.stat().st_size)
            for path, match in named
        ], moment

    def fetch(self, waiting: Waiting, into: Path) -> bytes:
        """Read the content of a report.

        Raises:
            SignatureError: The file is too large, unreadable or damaged.
        """
        path = self.folder / waiting.name
        if waiting.size_bytes > _MOST_BYTES:
            raise SignatureError(f"{path}: {waiting.size_bytes} bytes are no report")
        try:
            data = path.read_bytes()
        except OSError as error:  # a stick with a bad sector; others may still be whole
            raise SignatureError(f"{path}: cannot be read ({str(error.strerror).lower()})") from error
        if waiting.id is not None and hashlib.sha256(data).hexdigest() != waiting.id:
            raise SignatureError(f"{path}: damaged: its content is not what its name says")
        return data

    def delivered(self, names: list[str]) -> None:
        """Do nothing: several hosts may read a stick."""


@dataclass
class Outcome:
    """The result of a collection.

    Attributes:
        collected: Id -> the device's name, of new reports.
        known: Ids of reports that the store had before.
        unknown: Id -> the fingerprint of the key, of reports from devices that are not enrolled.
        damaged: Name -> the reason, of damaged reports.
        newer: Names of reports that a newer edgeprune made.
        left: Names of other files in a folder, and of reports that another host took.
        unmarked: The reason why reports could not be marked as delivered; else None.
    """

    collected: dict[str, str] = field(default_factory=dict)
    known: list[str] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)  # {id: the fingerprint of its key}
    damaged: dict[str, str] = field(default_factory=dict)
    newer: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    unmarked: str | None = None

    def check(self) -> None:
        """Check that nothing needs a person's attention.

        Raises:
            GateError: Something does.
        """
        problems = [shown(f"{name}: {why}", 1000) for name, why in self.damaged.items()]
        if self.unknown:
            prints = ", ".join(sorted(set(self.unknown.values())))
            problems.append(
                f"{len(self.unknown)} of a device that is not enrolled here ({prints}), kept apart: edgeprune setup "
                "enrols it; or compare with edgeprune keys on the device, then --trust-new"
            )
        if self.newer:
            problems.append(f"{len(self.newer)} made by a newer edgeprune, left where they are: update this host")
        if self.unmarked:
            problems.append(f"what is here now goes on waiting there, which loses nothing: {self.unmarked}")
        if problems:
            raise GateError("; ".join(problems))


def collect(
    source: ReportSource, store: Store, *, trust_new: bool = False, say: Callable[[str], None] = lambda text: None
) -> Outcome:
    """Fetch, verify and keep all waiting reports.

    Args:
        source: The source of the reports.
        store: Keeps them.
        trust_new: Enrol the keys of unknown devices.
        say: Called with the progress, as text.

    Raises:
        LinkError: The link failed for good. The reports in the store stay, and the same call goes on.
        InputError: This disk is full, or the like; the same holds.
    """
    store.prepare()
    waiting, moment = source.look()
    outcome, held = Outcome(), []  # held: on this disk, not yet marked as delivered
    for number, item in enumerate(waiting, 1):
        say(f"report {number} of {len(waiting)}, {item.size_bytes / 1e6:.1f} MB")
        if item.id is not None and item.id in store:
            outcome.known.append(item.id)
            held.append(item.name)
        else:
            try:
                data = source.fetch(item, store.incoming)
                if _keep(data, item, source, store, moment, trust_new, outcome):
                    held.append(item.name)
            except _FetchedElsewhere:
                outcome.left.append(item.name)
            except (SignatureError, _NoReport) as error:
                if item.id is None and isinstance(error, _NoReport):
                    outcome.left.append(item.name)
                else:
                    outcome.damaged[item.name] = str(error)
                    _keep_damaged(item, source, store)
            (store.incoming / Path(item.name).name).unlink(missing_ok=True)
        if held and (len(held) == _BATCH or number == len(waiting)):
            try:
                source.delivered(held)
            except RemoteError as error:  # its card is full or read-only: fetch the rest all the same
                outcome.unmarked = str(error)
            held = []
    return outcome


class _NoReport(InputError):
    """The content is no report."""


class _FetchedElsewhere(InputError):
    """Another host has just fetched it."""


def _keep(
    data: bytes, item: Waiting, source: ReportSource, store: Store, moment: Moment, trust_new: bool, outcome: Outcome
) -> bool:
    """Whether the report is in the store now."""
    what = f"{source.title}: {item.name}"
    try:
        parsed = strict_json.loads(data, what)
        version = parsed.get("schema_version") if isinstance(parsed, dict) else None
        if isinstance(version, int) and version > BenchReport.schema_version:
            outcome.newer.append(item.name)
            return False
        report = BenchReport.from_json(parsed, what)
    except InputError as error:
        raise _NoReport(str(error)) from error
    key = report.verify(what)
    data = report.to_bytes()  # as the spool has it, also of a file that bench --report has formatted
    fingerprint = keys.fingerprint(key)
    name = keys.enrolled().get(fingerprint, (None,))[0]
    if name is None and trust_new:
        name = _enrol(report.device["hostname"], key)
    measured_at, measured_by = _measured(report, moment)
    now = datetime.now(timezone.utc)
    receipt = Receipt(source.title, name, _iso(now), measured_at, measured_by)
    identity = hashlib.sha256(data).hexdigest()
    if name and identity in store:
        outcome.known.append(identity)
        return True
    (store.incoming / Path(item.name).name).unlink(missing_ok=True)  # makes room on a disk that is nearly full
    store.put(data, receipt)
    if name is None:
        outcome.unknown[identity] = fingerprint
        return False
    outcome.collected[identity] = name
    return True


def _keep_damaged(item: Waiting, source: ReportSource, store: Store) -> None:
    came = store.incoming / Path(item.name).name
    if isinstance(source, ReportFolder):
        came = source.folder / item.name
    if came.is_symlink() or item.size_bytes > _MOST_BYTES:  # a link on a stick may name any file of this host
        return
    with suppress(OSError):
        store.put_damaged(came.read_bytes(), came.name)


def _measured(report: BenchReport, moment: Moment) -> tuple[str | None, str | None]:
    """The end of the run by this host's clock, and the basis of that time."""
    then = report.clock
    same = then["boot_id"] is not None and then["boot_id"] == moment.boot_id
    if same and None not in (then["boottime_s"], moment.boottime_s) and then["boottime_s"] <= moment.boottime_s:
        when = moment.host - timedelta(seconds=moment.boottime_s - then["boottime_s"])
        return _iso(when), f"seconds since the device's boot, within {max(moment.within_s, 0.01):.2f} s"
    if then["synchronized"] and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", report.created):
        with suppress(ValueError):  # a thirteenth month
            if datetime.fromisoformat(report.created.replace("Z", "+00:00")) <= moment.host:
                return report.created, "the device's clock, which was synchronized"
    return None, None


def _listed(lines: list[str], title: str) -> Iterator[Waiting]:
    for line in lines[:_MOST_REPORTS]:
        match = re.fullmatch(r"\s*([0-9]{1,12}) (([0-9a-f]{64})\.json)", line)
        if match:
            yield Waiting(match[2], match[3], int(match[1]))


def _enrol(hostname: str, key: VerifyKey) -> str:
    """Enrol a device under its own host name, with a part of the key's fingerprint where another device has it."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", hostname).strip("-._")[:80] or "device"
    with suppress(SignatureError):
        keys.enrol(name, key)
        return name
    name = f"{name}-{bytes(key).hex()[:8]}"
    keys.enrol(name, key)
    return name


def _iso(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
