"""Collects reports from a drone or a copied folder into the host's store, each exactly once and complete.

The drone needs no agent for this: its spool consists of files named by the SHA-256 of their content. A partial transfer
continues where it stopped. A report is moved to delivered/ on the drone only after it is synced to this disk. A failure
at any moment loses no report, and the names prevent duplicates.

A drone may be hostile. No report is parsed before its signer is known, unless it is small (`reports.report.parse`); the
folders of refused reports are bounded; a refused report is not fetched again, and a call fetches only so many.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple, Protocol

from edgeprune_device import clock, strict_json
from edgeprune_device.errors import GateError, InputError, SignatureError, reason
from edgeprune_device.option import named
from edgeprune_device.progress import Say
from edgeprune_device.reports import report as report_file
from edgeprune_device.reports.report import MOST_BYTES, BenchReport
from edgeprune_device.trust import keys, signature
from nacl.signing import VerifyKey

from edgeprune.drones.ssh import Link, RemoteError, shown
from edgeprune.drones.store import Receipt, Store

__all__ = ["Drone", "Outcome", "ReportFolder", "collect"]

_MOST_REPORTS = 10_000
_MOST_REFUSED, _MOST_REFUSED_BYTES = 200, 64 << 20  # after so many, one call fetches no more from this drone
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
        id: Its SHA-256, hexadecimal, if the name contains it; else None.
        size_bytes: Its size, bytes.
    """

    name: str
    id: str | None
    size_bytes: int


class Moment(NamedTuple):
    """A device's clock and this host's clock at one moment.

    Attributes:
        boot_id: The id of the device's boot; None if it is not known.
        boottime_s: Seconds since that boot; None if they are not known.
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
    remote: bool  # whether a fetch costs time, so that a refused report is not fetched again

    def look(self) -> tuple[list[Waiting], Moment]:
        """List the waiting reports, and read the source's clock."""

    def fetch(self, waiting: Waiting, into: Path) -> bytes:
        """Fetch the content of a report.

        Args:
            waiting: The report.
            into: A folder for partial content.

        Raises:
            SignatureError: The report is damaged at its source.
        """

    def delivered(self, names: list[str]) -> None:
        """Mark reports as delivered: they are on this host's disk."""


class Drone:
    """A spool behind a `Link`."""

    remote = True

    def __init__(self, link: Link) -> None:
        self._link, self.title, self._spool = link, link.target, ""

    def look(self) -> tuple[list[Waiting], Moment]:
        """List the waiting reports, and read the drone's clock.

        Raises:
            InputError: The drone's answer has no valid path of its spool.
            LinkError: The link failed for good.
        """
        self._link.connect()  # so that the answer below takes a single round trip
        began = time.monotonic()
        answer = self._link.run(_LIST)
        took = time.monotonic() - began
        host = datetime.now(timezone.utc) - timedelta(seconds=took / 2)
        lines = answer.decode("utf-8", "replace").split("\n")
        if len(lines) < 3 or not lines[2].startswith("/") or not lines[2].isprintable():
            raise InputError(f"{self.title}: invalid path of the spool (found {shown(' '.join(lines))!r})")
        boot = lines[0] if re.fullmatch(r"[0-9a-f-]{36}", lines[0]) else None
        uptime = float(lines[1]) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", lines[1]) else None
        self._spool = lines[2]
        return list(_listed(lines[3:], self.title)), Moment(boot, uptime, host, took / 2)

    def fetch(self, waiting: Waiting, into: Path) -> bytes:
        """Fetch the content of a report; a partial transfer continues.

        Raises:
            SignatureError: The report is too large, or damaged at its source.
            LinkError: The link failed for good.
        """
        local = into / waiting.name
        if waiting.size_bytes > MOST_BYTES:
            raise SignatureError(
                f"{self.title}: {waiting.name}: too large for a report (found {waiting.size_bytes} bytes)"
            )
        remote, identity = f"{self._spool}/pending/{waiting.name}", waiting.name.removesuffix(".json")
        for _ in range(2):
            with suppress(FileNotFoundError):  # another collection on this host has just stored it
                data = local.read_bytes()
                if hashlib.sha256(data).hexdigest() == identity:
                    return data
            try:
                self._link.get(remote, local, waiting.size_bytes, identity)
            except RemoteError as error:
                if self._link.run('[ ! -e "$1" ] || echo there', remote).strip() == b"there":
                    raise SignatureError(
                        str(error)
                    ) from error  # the drone's card cannot read this file; others may be intact
                raise _FetchedElsewhere(str(error)) from error
        return local.read_bytes()

    def delivered(self, names: list[str]) -> None:
        """Move reports to delivered/ on the drone."""
        self._link.run(_DELIVERED, self._spool, *names)


class ReportFolder:
    """A USB stick, a copied spool or this machine's own spool; its content is not changed."""

    remote = False

    def __init__(self, folder: Path) -> None:
        self.folder, self.title = folder, str(folder)

    def look(self) -> tuple[list[Waiting], Moment]:
        """List the reports in the folder, and read this machine's clock."""
        places = [self.folder / name for name in ("pending", "delivered") if (self.folder / name).is_dir()]
        paths = [
            path
            for place in places or [self.folder]
            for path in sorted(place.glob("*.json"))
            if path.name[0] != "." and path.is_file()
        ]
        now = clock.now()
        moment = Moment(now["boot_id"], now["boottime_s"], datetime.now(timezone.utc), 0.0)
        named = ((path, re.fullmatch(r"([0-9a-f]{64})\.json", path.name)) for path in paths)
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
        if waiting.size_bytes > MOST_BYTES:
            raise SignatureError(f"{path}: too large for a report (found {waiting.size_bytes} bytes)")
        try:
            data = path.read_bytes()
        except OSError as error:  # a USB stick with a bad sector; other reports may be intact
            raise SignatureError(f"{path}: cannot be read ({reason(error)})") from error
        if waiting.id is not None and hashlib.sha256(data).hexdigest() != waiting.id:
            raise SignatureError(f"{path}: damaged (the content does not match the hash in the file name)")
        return data

    def delivered(self, names: list[str]) -> None:
        """Do nothing, because several hosts may read a USB stick."""


@dataclass
class Outcome:
    """The result of a collection.

    Attributes:
        collected: New reports: id -> name of the device.
        known: Ids of reports that the store already had.
        unknown: Reports from devices that are not enrolled: id -> fingerprint of the key.
        damaged: Damaged reports: name -> reason.
        newer: Names of reports from a newer edgeprune.
        left: Names of other files in a folder, and of reports that another host has fetched.
        unfetched: How many reports were not fetched, because too many before them were refused.
        unmarked: The reason why reports could not be marked as delivered; else None.
    """

    collected: dict[str, str] = field(default_factory=dict)
    known: list[str] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)  # {id: the fingerprint of its key}
    damaged: dict[str, str] = field(default_factory=dict)
    newer: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    unfetched: int = 0
    unmarked: str | None = None

    @property
    def refused(self) -> int:
        """The number of refused reports."""
        return len(self.damaged) + len(self.unknown)

    def check(self) -> None:
        """Check that nothing needs the user's attention.

        Raises:
            GateError: A report is damaged, unknown, newer or not marked as delivered.
        """
        problems = [shown(f"{name}: {why}", 1000) for name, why in self.damaged.items()]
        if self.unknown:
            prints = ", ".join(sorted(set(self.unknown.values())))
            problems.append(
                f"reports of devices that are not enrolled here: {len(self.unknown)} ({prints}), stored in unknown/; "
                "enrol the device with edgeprune setup, or compare the key with edgeprune keys on the device, and give "
                f"{named('trust_new')}"
            )
        if self.newer:
            problems.append(
                f"reports of a newer edgeprune: {len(self.newer)}, not fetched; update edgeprune on this host"
            )
        if self.unfetched:
            problems.append(
                f"reports not fetched: {self.unfetched}, because too many before them were refused; collect again"
            )
        if self.unmarked:
            problems.append(
                f"reports not marked as delivered on the drone ({self.unmarked}); none is lost, and the next collect "
                "marks them"
            )
        if problems:
            raise GateError("; ".join(problems))


def collect(source: ReportSource, store: Store, *, trust_new: bool = False, say: Say = lambda text: None) -> Outcome:
    """Fetch, verify and keep all waiting reports.

    Args:
        source: The source of the reports.
        store: Keeps them.
        trust_new: Enrol the keys of unknown devices.
        say: Called with the progress, as text.

    Raises:
        LinkError: The link failed for good. The collected reports stay, and the same call continues.
        InputError: This disk is full or not writable; the collected reports stay here, too.
    """
    store.prepare()
    waiting, moment = source.look()
    outcome, held = Outcome(), []  # held: on this disk, not yet marked as delivered
    refused = refused_bytes = 0
    for number, item in enumerate(waiting, 1):
        say(f"report {number} of {len(waiting)}, {item.size_bytes / 1e6:.1f} MB")
        before = store.damaged(item.name) if source.remote else None
        apart = store.unknown(item.id) if source.remote and item.id is not None else None
        if item.id is not None and item.id in store:
            outcome.known.append(item.id)
            held.append(item.name)
        elif before is not None:
            outcome.damaged[item.name] = f"still damaged; remove {before} to fetch the report again"
        elif source.remote and apart is None and (refused > _MOST_REFUSED or refused_bytes > _MOST_REFUSED_BYTES):
            outcome.unfetched += 1
        else:
            count = outcome.refused
            try:
                data = source.fetch(item, store.incoming) if apart is None else apart.path.read_bytes()
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
            if apart is None and outcome.refused > count:
                refused, refused_bytes = refused + 1, refused_bytes + item.size_bytes
        if held and (len(held) == _BATCH or number == len(waiting)):
            try:
                source.delivered(held)
            except RemoteError as error:  # the drone's card is full or read-only: still fetch the rest
                outcome.unmarked = str(error)
            held = []
    return outcome


class _NoReport(InputError):
    """The content is not a report."""


class _FetchedElsewhere(InputError):
    """Another host has just fetched the report."""


def _keep(
    data: bytes, item: Waiting, source: ReportSource, store: Store, moment: Moment, trust_new: bool, outcome: Outcome
) -> bool:
    """Store a report; return whether it is now among the enrolled devices' reports."""
    what = f"{source.title}: {item.name}"
    try:
        parsed = report_file.parse(data, what)
        version = parsed.get("schema_version") if isinstance(parsed, dict) else None
        if isinstance(version, int) and version > BenchReport.schema_version:
            outcome.newer.append(item.name)
            return False
        report = BenchReport.from_json(parsed, what)
    except strict_json.TooLarge as error:
        signer = signature.signer(data)
        if item.id is None or signer is None or keys.fingerprint(signer) in keys.enrolled():
            raise _NoReport(str(error)) from error
        outcome.unknown[item.id] = keys.fingerprint(signer)  # fetched again once the device is enrolled
        return False
    except InputError as error:
        raise _NoReport(str(error)) from error
    key = report.verify(what)
    data = report.to_bytes()  # the spool's format, also for a file that bench --report has pretty-printed
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
    if came.is_symlink() or item.size_bytes > MOST_BYTES:  # a link on a stick may name any file of this host
        return
    with suppress(OSError):
        store.put_damaged(came.read_bytes(), came.name)


def _measured(report: BenchReport, moment: Moment) -> tuple[str | None, str | None]:
    """The end of the run on this host's clock, and the basis of that time."""
    then = report.clock
    same = then["boot_id"] is not None and then["boot_id"] == moment.boot_id
    then_s, now_s = then["boottime_s"], moment.boottime_s
    if same and then_s is not None and now_s is not None and then_s <= now_s:
        when = moment.host - timedelta(seconds=now_s - then_s)
        return _iso(when), f"seconds since the device's boot, within {max(moment.within_s, 0.01):.2f} s"
    if then["synchronized"] and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", report.created):
        with suppress(ValueError):  # such as month 13
            if datetime.fromisoformat(report.created.replace("Z", "+00:00")) <= moment.host:
                return report.created, "the device's clock, which was synchronized"
    return None, None


def _listed(lines: list[str], title: str) -> Iterator[Waiting]:
    for line in lines[:_MOST_REPORTS]:
        match = re.fullmatch(r"\s*([0-9]{1,12}) (([0-9a-f]{64})\.json)", line)
        if match:
            yield Waiting(match[2], match[3], int(match[1]))


def _enrol(hostname: str, key: VerifyKey) -> str:
    """Enrol a device under its own host name, with a part of the key if another device has that name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", hostname).strip("-._")[:80] or "device"
    with suppress(SignatureError):
        keys.enrol(name, key)
        return name
    name = f"{name}-{bytes(key).hex()[:8]}"
    keys.enrol(name, key)
    return name


def _iso(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
