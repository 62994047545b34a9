"""Releases: the bundles that were installed on this device, and which of them is in use.

    /opt/edgeprune/                  the root; --root names another one
        releases/ID/bundle.epb       ID: the first 16 hex digits of the bundle's SHA-256
        releases/ID/release.json     its record (`Release`, `schema/release.json`)
        releases/ID/…                its model as files, for other programs; never read back
        current -> releases/ID       switched by one rename: it names a complete release at every moment
        state.json                   the counter below which no bundle is installed
        lock, .state.lock            one installation at a time; a short one around every change of the above

A release is on trial until it was seen healthy, then good; bad when it failed. A device falls back to the newest good
release. Names that begin with a dot are work in progress and are ignored.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Union

from edgeprune_device import schema, strict_json
from edgeprune_device.errors import InputError, SignatureError
from edgeprune_device.files import sync_folder, write_atomic
from edgeprune_device.printable import printable
from edgeprune_device.trust.bundle import Bundle

__all__ = ["DEFAULT_ROOT", "Release", "Releases", "identity", "parse_counter", "worthiest"]

DEFAULT_ROOT = Path("/opt/edgeprune")
BUNDLE, RECORD = "bundle.epb", "release.json"
IDENTITY = re.compile("[0-9a-f]{16}")
MAX_RECORD_BYTES = 1 << 16


def identity(bundle_sha256: str) -> str:
    """The ID of a release: the first 16 hexadecimal digits of its bundle's SHA-256."""
    return bundle_sha256[:16]


def worthiest(known: Iterable[Release], current: Optional[str]) -> List[Release]:
    """All releases but the one in use, in the order in which they are kept.

    The newest good ones come first, then the newest others.
    """
    others = [release for release in known if release.identity != current]
    return sorted(others, key=lambda release: (release.state != "good", -release.sequence))


def parse_counter(data: bytes, what: str) -> int:
    """Parse the content of `state.json`.

    Args:
        data: The content.
        what: Begins the error's message.

    Raises:
        InputError: The content is damaged.
    """
    state = strict_json.loads(data, what)
    value = state.get("counter") if isinstance(state, dict) and state.get("schema_version") == 1 else None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(f"{what}: holds no counter; remove it to start from 0")
    return value


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
        state: "trial" (switched to, not yet seen healthy), "good" or "bad".
        reason: Why it is bad.
        starts: How often the service was started with it while on trial.
        older: Whether it was accepted with a counter below the device's.
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
            what: Begins the error's message.

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
    """The releases below one root. Reading makes no file; an installation makes the root.

    Args:
        root: The root.
    """

    def __init__(self, root: Union[str, Path] = DEFAULT_ROOT):
        self.root = Path(os.path.abspath(str(root)))

    def folder(self, release: Union[Release, str]) -> Path:
        """The folder of a release, or of the one with this ID."""
        return self.root / "releases" / (release if isinstance(release, str) else release.identity)

    def all(self) -> List[Release]:
        """Every release whose record can be read, the newest first."""
        found = []
        with suppress(OSError):
            for folder in (self.root / "releases").iterdir():
                if IDENTITY.fullmatch(folder.name):
                    with suppress(InputError):
                        found.append(self._read(folder.name))
        return sorted(found, key=lambda release: -release.sequence)

    def get(self, text: str) -> Release:
        """The release whose ID begins with `text`.

        Raises:
            InputError: There is none, or there are several.
        """
        found = [release for release in self.all() if text and release.identity.startswith(text)]
        if len(found) != 1:
            which = "several releases" if found else "no release"
            known = ", ".join(release.identity for release in self.all()) or "none"
            raise InputError(f"{self.root}: {which} {printable(text[:80])!r} (there: {known})")
        return found[0]

    def current(self) -> Optional[Release]:
        """The release in use; None where there is none.

        Raises:
            InputError: `current` or the record is damaged.
        """
        link = self.root / "current"
        try:
            target = os.readlink(str(link))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"{link}: is not a link to a release ({str(error.strerror).lower()})") from error
        parent, _, name = target.rpartition("/")
        if parent != "releases" or not IDENTITY.fullmatch(name):
            raise InputError(f"{link}: does not name a release ({printable(target[:200])})")
        return self._read(name)

    def fallback(self) -> Optional[Release]:
        """The newest good release that is not in use; None where there is none."""
        now = self._current_identity()
        return next((r for r in self.all() if r.state == "good" and r.identity != now), None)

    def open(self, release: Release) -> Bundle:
        """Open a release's bundle and verify all of it.

        An untrusted key is accepted only where the release was installed with one.

        Raises:
            SignatureError: The bundle is damaged, is not the installed one, or its key is no longer trusted.
            InputError: The bundle cannot be read.
        """
        path = self.folder(release) / BUNDLE
        bundle = Bundle.open(path, allow_untrusted=not release.trusted)
        if bundle.sha256 != release.bundle_sha256:
            raise SignatureError(f"{path}: is not the bundle that was installed as {release.identity}")
        return bundle

    # --- changes: each is on the disk before it returns, whole or not at all -----------------------------------------

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
            reason: Why, in one line.

        Returns:
            The changed record.
        """
        said = None if reason is None else printable(" ".join(reason.split()))[:1000]
        return self.write(replace(release, state=state, reason=said))

    def started(self, release: Release) -> Release:
        """Write a release's record with one more start, and return it."""
        return self.write(replace(release, starts=release.starts + 1))

    def confirm(self, release: Release) -> Release:
        """Mark a healthy release as good; from now on no older bundle is installed."""
        if release.counter > self.counter:
            state = strict_json.pretty({"schema_version": 1, "counter": release.counter})
            write_atomic(self.root / "state.json", state, mode=0o644)
        return self.mark(release, "good")

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
        with self._explained(), self.state_locked():  # the service may be about to fall back to one of them
            now = self._current_identity()
            kept = {now, *(release.identity for release in worthiest(self.all(), now)[: max(keep - 1, 0)])}
            for path in sorted((self.root / "releases").iterdir()):
                if IDENTITY.fullmatch(path.name) and path.name not in kept:
                    # Out of sight first: half of a release is never seen under its name.
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
    def counter(self) -> int:
        """The lowest counter of a bundle that is installed here.

        Raises:
            InputError: The file is damaged or cannot be read.
        """
        path = self.root / "state.json"
        try:
            with open(path, "rb") as stream:
                return parse_counter(stream.read(MAX_RECORD_BYTES), str(path))
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({str(error.strerror).lower()})") from error

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
            deadline = time.monotonic() + patience_s
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise
                time.sleep(0.05)
            yield

    def at_work(self) -> bool:
        """Whether an installation is at work at this moment."""
        try:
            with self.locked():
                return False
        except BlockingIOError:
            return True

    @contextmanager
    def state_locked(self) -> Iterator[None]:
        """Hold the short lock around a decision that changes `current` or a record.

        It keeps installer and service from changing them at the same time.
        """
        with self._opened(".state.lock") as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
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
            raise InputError(f"{path}: cannot be read ({str(error.strerror).lower()})") from error
        release = Release.from_json(data, str(path))
        if release.identity != name:
            raise InputError(f"{path}: belongs to another release")
        return release

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{error.filename or self.root}: {str(error.strerror or error).lower()}") from error
