"""Releases: the bundles that are installed on this device, and which of them is in use.

    /opt/edgeprune/                  the root; --root names another one
        releases/ID/bundle.epb       ID: the first 16 hex digits of the bundle's SHA-256
        releases/ID/release.json     its record (`Release`, `schema/release.json`)
        releases/ID/…                its model as files, for other programs (`installation.contents`)
        current -> releases/ID       switched by one rename: it names a complete release at every moment
        state.json                   for each key, the counter below which none of its bundles is installed
        lock, .state.lock            one installation at a time; a short one around every change of the above

A release is on trial until it is confirmed as healthy; then it is good, or bad if it failed. A device falls back to the
newest good release. Names that begin with a dot are unfinished and ignored.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Union

from edgeprune_device import files, options, schema, strict_json
from edgeprune_device.errors import InputError, SignatureError, reason
from edgeprune_device.files import sync_folder, write_atomic
from edgeprune_device.printable import printable
from edgeprune_device.trust.bundle import Bundle

__all__ = ["DEFAULT_ROOT", "Release", "Releases", "identity", "parse_counters", "worthiest"]

DEFAULT_ROOT = options.ROOT
BUNDLE, RECORD = "bundle.epb", "release.json"
IDENTITY = re.compile("[0-9a-f]{16}")
MAX_RECORD_BYTES = 1 << 16
_MOST_COUNTERS = 256  # those of the highest counters are kept; with all trusted keys of one device it is never reached


def identity(bundle_sha256: str) -> str:
    """The ID of a release: the first 16 hexadecimal digits of its bundle's SHA-256."""
    return bundle_sha256[:16]


def worthiest(known: Iterable[Release], current: Optional[str]) -> List[Release]:
    """All releases except the one in use, in the order in which they are kept.

    The newest good releases come first, then the newest others.
    """
    others = [release for release in known if release.identity != current]
    return sorted(others, key=lambda release: (release.state != "good", -release.sequence))


def parse_counters(data: bytes, what: str) -> Dict[str, int]:
    """Parse the content of `state.json`.

    Args:
        data: The content.
        what: Start of the error message.

    Returns:
        {fingerprint of a key: the lowest counter of a bundle of it that is installed}.

    Raises:
        InputError: The content is damaged.
    """
    counters = None
    with suppress(InputError):
        state = strict_json.loads(data, what)
        counters = state.get("counters") if isinstance(state, dict) and state.get("schema_version") == 2 else None
    if not isinstance(counters, dict) or not all(type(value) is int and value >= 0 for value in counters.values()):
        actual = "other content" if data.strip() else "an empty file"
        raise InputError(
            f'{what}: holds no counters (found {actual}, expected {{"schema_version": 2, "counters": {{KEY: N}}}}); '
            "remove the file: older bundles are then accepted until the next release is confirmed"
        )
    return counters


@dataclass(frozen=True)
class Release:
    """The record of a release.

    An example:

        Release("9f86d081884c7d65…", name="demo", counter=1764000000, key_fingerprint="SHA256:4Hc…", trusted=True,
                installed="2026-11-24T12:00:00Z", sequence=3, state="good", precision="int8-fp16", runtime="trt", …)

    Attributes:
        bundle_sha256: SHA-256 of the bundle.
        name: Name of the bundle.
        counter: Counter of the bundle.
        key_fingerprint: Fingerprint of the key that signed the bundle.
        trusted: Whether the key was trusted at the installation.
        installed: Wall clock at the installation, which may be wrong.
        sequence: Number of the installation on this device, ascending.
        state: "trial" (in use, not yet confirmed as healthy), "good" or "bad".
        reason: Why it is bad.
        starts: How often the service was started with it while on trial.
        older: Whether it was accepted with a counter below the one that the device holds for its key.
        precision: Precision that the benchmark at the installation used.
        runtime: Runtime that this benchmark used.
        report: Id of this benchmark's report.
        accuracy: {"map50_95", "host_map50_95", "delta"} of this benchmark.
        schema_version: Version of the schema.
    """

    bundle_sha256: str
    name: str
    counter: int
    key_fingerprint: str
    trusted: bool
    installed: str
    sequence: int
    state: str = "trial"
    reason: Optional[str] = None
    starts: int = 0
    older: bool = False
    precision: Optional[str] = None
    runtime: Optional[str] = None
    report: Optional[str] = None
    accuracy: Optional[Mapping[str, Optional[float]]] = None
    schema_version: int = 1

    @property
    def identity(self) -> str:
        """The ID of the release, which is the name of its folder."""
        return identity(self.bundle_sha256)

    @classmethod
    def from_json(cls, data: Any, what: str = "release") -> Release:
        """Read a record from a parsed JSON object.

        Args:
            data: The object.
            what: Start of the error message.

        Raises:
            InputError: The object does not fit the schema.
        """
        return cls(**schema.check("release", data, what))

    def to_json(self) -> Dict[str, Any]:
        """A JSON object that fits `schema/release.json`."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.identity} ({self.name})"


class Releases:
    """The releases below one root. Reading creates no file; an installation creates the root.

    Args:
        root: The root.
    """

    def __init__(self, root: Union[str, Path] = DEFAULT_ROOT):
        self.root = Path(os.path.abspath(str(root)))

    def folder(self, release: Union[Release, str]) -> Path:
        """The folder of a release, given as such or by its ID."""
        return self.root / "releases" / (release if isinstance(release, str) else release.identity)

    def all(self) -> List[Release]:
        """All releases with a readable record, newest first."""
        releases = []
        with suppress(OSError):
            for folder in (self.root / "releases").iterdir():
                if IDENTITY.fullmatch(folder.name):
                    with suppress(InputError):
                        releases.append(self._read(folder.name))
        return sorted(releases, key=lambda release: -release.sequence)

    def get(self, text: str) -> Release:
        """The release whose ID begins with `text`.

        Raises:
            InputError: No release matches, or several match.
        """
        matches = [release for release in self.all() if text and release.identity.startswith(text)]
        if len(matches) != 1:
            which = "several releases" if matches else "no release"
            known = ", ".join(release.identity for release in self.all()) or "none"
            raise InputError(f"{self.root}: {which} {printable(text[:80])!r} (found {known})")
        return matches[0]

    def current(self) -> Optional[Release]:
        """The release in use; None if none is in use.

        Raises:
            InputError: `current` or the record is damaged.
        """
        link = self.root / "current"
        try:
            target = os.readlink(str(link))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"{link}: not a link to a release ({reason(error)})") from error
        parent, _, name = target.rpartition("/")
        if parent != "releases" or not IDENTITY.fullmatch(name):
            raise InputError(
                f"{link}: invalid link (found {printable(target[:200])}, expected the folder of a release)"
            )
        return self._read(name)

    def check_switch(self) -> None:
        """Check that `current` can name another release: a rename can replace a link or a file, but not a folder.

        Raises:
            InputError: `current` is a folder.
        """
        link = self.root / "current"
        if link.is_dir() and not link.is_symlink():
            raise InputError(
                f"{link}: is in the way (found a folder, expected a link to a release); move the folder elsewhere"
            )

    def fallback(self) -> Optional[Release]:
        """The newest good release that is not in use; None if none exists."""
        now = self._current_identity()
        return next((r for r in self.all() if r.state == "good" and r.identity != now), None)

    def open(self, release: Release) -> Bundle:
        """Open a release's bundle and verify all of it.

        An untrusted key is accepted only if the release was installed with one.

        Raises:
            SignatureError: The bundle is damaged or not the installed one, or its key is no longer trusted.
            InputError: The bundle cannot be read.
        """
        path = self.folder(release) / BUNDLE
        bundle = Bundle.open(path, allow_untrusted=not release.trusted)
        if bundle.sha256 != release.bundle_sha256:
            raise SignatureError(
                f"{path}: not the bundle of release {release.identity} (replaced or damaged); install the bundle again"
            )
        return bundle

    # --- changes: each is on the disk, completely or not at all, on return----------------------------------------

    def switch(self, release: Optional[Release]) -> None:
        """Let `current` name a release; None removes it.

        Call it within `state_locked`, and with a release that verifies.
        """
        link = self.root / "current"
        with self._explained():
            if release is None:
                with suppress(FileNotFoundError):
                    link.unlink()
            else:
                beside = self.root / f".current.{secrets.token_hex(4)}"
                os.symlink(f"releases/{release.identity}", str(beside))
                os.replace(str(beside), str(link))
            sync_folder(self.root)

    def mark(self, release: Release, state: str, reason: Optional[str] = None) -> Release:
        """Write a release's record with another state.

        Args:
            release: The release.
            state: "trial", "good" or "bad".
            reason: The reason, in one line.

        Returns:
            The changed record.
        """
        reason_line = None if reason is None else printable(" ".join(reason.split()))[:1000]
        return self.write(replace(release, state=state, reason=reason_line))

    def started(self, release: Release) -> Release:
        """Write a release's record with one more start, and return it."""
        return self.write(replace(release, starts=release.starts + 1))

    def confirm(self, release: Release) -> Release:
        """Mark a healthy release as good; from now on no older bundle of its key is installed."""
        counters = self.counters
        if release.counter > counters.get(release.key_fingerprint, 0):
            self._write_counters({**counters, release.key_fingerprint: release.counter})
        return self.mark(release, "good")

    def forget(self, mark: str) -> bool:
        """Reset the counter of a key. Call it within `state_locked`.

        Args:
            mark: Fingerprint of the key.

        Returns:
            False if the key had none.

        Raises:
            InputError: The file is damaged, or cannot be written.
        """
        counters = self.counters
        if mark not in counters:
            return False
        self._write_counters({other: value for other, value in counters.items() if other != mark})
        return True

    def _write_counters(self, counters: Mapping[str, int]) -> None:
        kept = sorted(counters.items(), key=lambda item: item[1])[-_MOST_COUNTERS:]
        state = strict_json.pretty({"schema_version": 2, "counters": dict(kept)})
        write_atomic(self.root / "state.json", state, mode=0o644)

    def write(self, release: Release) -> Release:
        """Write a release's record to its folder, and return it."""
        data = Release.from_json(release.to_json()).to_json()
        write_atomic(self.folder(release) / RECORD, strict_json.pretty(data), mode=0o644)
        return release

    def tidy(self, keep: int) -> List[str]:
        """Remove old releases.

        Args:
            keep: Number of releases to keep: the one in use, then the newest good ones, then the newest others.

        Returns:
            IDs of the removed releases.
        """
        gone = []
        with self._explained(), self.state_locked():  # the service may be falling back to one of them
            now = self._current_identity()
            kept = {now, *(release.identity for release in worthiest(self.all(), now)[: max(keep - 1, 0)])}
            for path in sorted((self.root / "releases").iterdir()):
                if IDENTITY.fullmatch(path.name) and path.name not in kept:
                    # Renamed first, so that a partly removed release is never visible under its name.
                    os.replace(str(path), str(path.with_name(f".old-{path.name}-{secrets.token_hex(4)}")))
                    gone.append(path.name)
        self.sweep()
        return gone

    def sweep(self) -> None:
        """Remove the leftovers of an interrupted installation. Call it within `locked`."""
        with self._explained():
            for path in (self.root / "releases").glob(".*"):
                shutil.rmtree(str(path), ignore_errors=True)
            for path in self.root.glob(".current.*"):
                path.unlink()

    @property
    def counters(self) -> Dict[str, int]:
        """{fingerprint of a key: the counter of its newest confirmed release}.

        A bundle with a lower counter is refused. Each key has a separate counter, so the bundles of one key never block
        the bundles of another key.

        Raises:
            InputError: The file is damaged or cannot be read.
        """
        path = self.root / "state.json"
        try:
            with open(path, "rb") as stream:
                return parse_counters(stream.read(MAX_RECORD_BYTES), str(path))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({reason(error)})") from error

    # --- locks -------------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self, patience_s: float = 0.0) -> Iterator[None]:
        """Hold the lock of the installation.

        Args:
            patience_s: How long to wait for the lock, s.

        Raises:
            BlockingIOError: Another process holds it.
        """
        with self._opened("lock") as descriptor:
            if not files.lock(descriptor, patience_s):
                raise BlockingIOError(f"{self.root}: another installation is in progress")
            yield

    def at_work(self) -> bool:
        """Whether an installation is in progress."""
        try:
            with self.locked():
                return False
        except BlockingIOError:
            return True

    @contextmanager
    def state_locked(self) -> Iterator[None]:
        """Hold the brief lock for a decision that changes `current` or a record.

        It prevents installer and service from changing them at the same time.
        """
        with self._opened(".state.lock") as descriptor:
            files.lock(descriptor)
            yield

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        with self._explained():
            descriptor = os.open(str(self.root / name), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    # --- reading -----------------------------------------------------------------------------------------------------

    def _current_identity(self) -> Optional[str]:
        try:
            return os.path.basename(os.readlink(str(self.root / "current")))
        except OSError:
            return None

    def _read(self, name: str) -> Release:
        path = self.folder(name) / RECORD
        try:
            with open(path, "rb") as stream:
                data = strict_json.loads(stream.read(MAX_RECORD_BYTES), str(path))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({reason(error)})") from error
        release = Release.from_json(data, str(path))
        if release.identity != name:
            raise InputError(f"{path}: belongs to another release; install the bundle again")
        return release

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{error.filename or self.root}: {reason(error)}") from error
