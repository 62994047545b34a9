"""Restarts the program that runs the current release, and watches it until it is healthy or has failed.

There are three cases. `edgeprune run`, under systemd or not, reports its state in `run/status.json`. For any other
systemd unit, only systemd reports the state. Without a service, the user's own programs read `current` when they start.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from edgeprune_device import agent, files
from edgeprune_device.errors import InputError, reason
from edgeprune_device.installation.options import LONGEST_WATCH_S
from edgeprune_device.option import named
from edgeprune_device.printable import printable
from edgeprune_device.progress import Say
from edgeprune_device.releases import Release, Releases
from edgeprune_device.service import unit
from edgeprune_device.service.status import Status, read

__all__ = ["Service", "check_unit", "command", "find", "privileged", "status", "systemd_runs", "write_unit"]

UNIT_FILE = Path("/etc/systemd/system") / unit.NAME
_SYSTEMD = Path("/run/systemd/system")
_UNIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.@\\-]{0,200}")
_FRESH_S = 15.0  # `edgeprune run` writes about every second
_START_S = 120.0  # until the first status, which then decides
_POLL_S = 0.25


def systemd_runs() -> bool:
    """Whether systemd is this system's first process, as sd_booted(3) checks it."""
    return _SYSTEMD.is_dir()


def privileged() -> Optional[List[str]]:
    """The prefix that runs a command as root: empty for root, sudo if it needs no password, otherwise None."""
    if os.geteuid() == 0:
        return []
    with suppress(OSError, subprocess.TimeoutExpired):
        if subprocess.run(["sudo", "-n", "true"], **_QUIET, timeout=10).returncode == 0:
            return ["sudo", "-n"]
    return None


def command() -> Path:
    """The path of this environment's `edgeprune`, under the name that survives `edgeprune setup`."""
    own = Path(sys.prefix) / agent.PROGRAM
    stable = Path(os.path.expanduser(f"~/{agent.HOME_COMMAND}"))
    return stable if os.path.realpath(str(stable)) == os.path.realpath(str(own)) else own


_WRITE = 'cat >"$1.new" && chmod 644 "$1.new" && sync && mv "$1.new" "$1"'


def check_unit() -> List[str]:
    """The prefix that runs a command as root, provided that a unit can be written.

    Raises:
        InputError: A unit cannot be written here.
    """
    if not systemd_runs():
        raise InputError(
            f"{named('source')} writes a systemd unit, but systemd does not run here; start edgeprune run by hand"
        )
    prefix = privileged()
    if prefix is None:
        raise InputError(
            f"{UNIT_FILE}: only root may write this file, and sudo asks for a password; deploy as root, or write the "
            f"file by hand (edgeprune unit prints it) and leave out {named('source')}"
        )
    return prefix


def write_unit(text: str) -> None:
    """Write edgeprune.service and enable it.

    Args:
        text: Content of the unit.

    Raises:
        InputError: A unit cannot be written here.
    """
    prefix = check_unit()
    if prefix:
        done = subprocess.run(
            [*prefix, "sh", "-c", _WRITE, "sh", str(UNIT_FILE)],
            input=text.encode("utf-8"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        if done.returncode:
            raise InputError(f"{UNIT_FILE}: cannot be written ({_last_line(done.stderr)})")
    else:
        files.write_atomic(UNIT_FILE, text, mode=0o644)
    _systemctl("daemon-reload")
    _systemctl("enable", unit.NAME)


def status(releases: Releases) -> Optional[Status]:
    """The last status of `edgeprune run`; None: no status, or the process is not alive."""
    return read(releases.root / "run" / "status.json", _FRESH_S)


class Service:
    """The null service, for a device on which no service runs the release.

    `restart` does nothing, and `watch` reports success.

    Attributes:
        description: Text for messages.
    """

    description = "no service runs the release"

    def restart(self) -> None:
        """Make the service read `current` again.

        Raises:
            InputError: The service cannot be reached.
        """

    def watch(self, release: Release, health_s: float, say: Say) -> Tuple[Optional[bool], str]:
        """Watch the service until it has been healthy with a release.

        Args:
            release: The release.
            health_s: How long it must be healthy, s.
            say: Receives a line of text.

        Returns:
            (True, the evidence), (False, the failure), or (None, why the health is not known yet).
        """
        return True, "no service runs the release, so the health check is skipped"


class _RunService(Service):
    """`edgeprune run` on these releases."""

    def __init__(self, releases: Releases, unit_name: Optional[str]):
        self._releases, self._unit = releases, unit_name
        self.description = f"edgeprune run, unit {unit_name}" if unit_name else "edgeprune run"

    def restart(self) -> None:
        if self._unit:
            _systemctl("restart", "--no-block", self._unit)
            return
        report = status(self._releases)
        if report is None:
            raise InputError("edgeprune run: no longer running; start the service again")
        try:
            os.kill(report["pid"], signal.SIGHUP)
        except OSError as error:
            why = reason(error)
            raise InputError(
                f"edgeprune run (pid {report['pid']}): cannot be signalled ({why}); run this command as its user"
            ) from error

    def watch(self, release: Release, health_s: float, say: Say) -> Tuple[Optional[bool], str]:
        begin = heard = time.monotonic()
        healthy = waiting = None  # since when, frames at that time
        restarts = 0
        while True:
            now = time.monotonic()
            current, record = self._releases.current(), self._releases.get(release.identity)
            if record.state == "bad":
                return False, record.reason or "the service marked the release bad"
            if current is None or current.identity != release.identity:
                return False, f"the service returned to {current or 'no release'}"
            report = status(self._releases)
            if report is not None and report["release"] == release.identity:
                heard, frames, state = now, report["frames"], report["state"]
                if report["restarts"] != restarts:
                    restarts, healthy = report["restarts"], None
                if record.state == "good" and state in ("running", "stopped"):
                    return True, f"{frames} frames, {restarts} restarts"  # the service has confirmed it
                if state == "running":
                    healthy, waiting = healthy or (now, frames), None
                    if now - healthy[0] >= health_s and frames > healthy[1]:
                        return True, f"{frames - healthy[1]} frames in {now - healthy[0]:.0f} s, {restarts} restarts"
                else:
                    healthy = None
                    waiting = (waiting or now) if state == "waiting" else None
                    if waiting is not None and now - waiting >= health_s:
                        return None, f"the source delivers no frames ({printable(str(report['reason'])[:200])})"
                say(f"{state}, {frames} frames, {restarts} restarts")
            if now - heard > _START_S:
                return False, f"the service has not reported for {_START_S:g} s ({self._why()})"
            if now - begin > LONGEST_WATCH_S + health_s:
                return False, f"the service did not stay healthy for {health_s:g} s (watched for {now - begin:.0f} s)"
            time.sleep(_POLL_S)

    def _why(self) -> str:
        return f"see journalctl -u {self._unit}" if self._unit else "edgeprune run has written no status"


class _Unit(Service):
    """A systemd unit of the user, whose state is known only from systemd's properties."""

    def __init__(self, unit_name: str):
        self._unit = unit_name
        self.description = f"unit {unit_name}"

    def restart(self) -> None:
        _systemctl("restart", "--no-block", self._unit)

    def watch(self, release: Release, health_s: float, say: Say) -> Tuple[Optional[bool], str]:
        begin, since, restarts = time.monotonic(), None, None
        while True:
            now, shown = time.monotonic(), _properties(self._unit)
            active, count = shown.get("ActiveState", "unknown"), shown.get("NRestarts", "0")
            if active == "failed" or (restarts not in (None, count)):
                return False, f"unit {self._unit} is {active} (result {shown.get('Result', '?')}, {count} restarts)"
            restarts = count
            since = (since or now) if active == "active" else None
            if since is not None and now - since >= health_s:
                return True, f"unit {self._unit} has been active for {now - since:.0f} s"
            if now - begin > _START_S + health_s:
                return False, f"unit {self._unit} is {active} after {now - begin:.0f} s"
            say(f"unit {self._unit} is {active}")
            time.sleep(_POLL_S)


def find(releases: Releases, unit_name: Optional[str] = None) -> Service:
    """Find the service that runs the current release.

    This is `unit_name`, else edgeprune.service if systemd has it, else a running `edgeprune run`, else none.

    Args:
        releases: The releases.
        unit_name: Name of a systemd unit, or None.

    Returns:
        The service; without one, a `Service` that does nothing.

    Raises:
        InputError: The unit does not exist, or the user may not restart it.
    """
    if unit_name is not None and not _UNIT_NAME.fullmatch(unit_name):
        raise InputError(f"{unit_name!r}: invalid unit name (expected a name such as detector.service)")
    if not systemd_runs():
        if unit_name is not None:
            raise InputError(f"{named('unit', unit_name)}: systemd does not run on this machine; leave the option out")
        return _started_by_hand(releases)
    name = unit.NAME if unit_name is None else unit_name if "." in unit_name else f"{unit_name}.service"
    known = _properties(name).get("LoadState") == "loaded"
    if not known and unit_name is not None:
        raise InputError(f"{named('unit', unit_name)}: no such systemd unit; systemctl list-units lists them")
    if not known:
        return _started_by_hand(releases)
    if privileged() is None:
        raise InputError(f"unit {name} can be restarted only by root, and sudo asks for a password; deploy as root")
    return _RunService(releases, name) if name == unit.NAME else _Unit(name)


def _started_by_hand(releases: Releases) -> Service:
    """`edgeprune run` without a unit, if it is running; otherwise the case without a service."""
    report = status(releases)
    if report is None:
        return Service()
    try:
        os.kill(report["pid"], 0)
    except PermissionError as error:
        raise InputError(
            f"{releases.root}: edgeprune run (pid {report['pid']}) belongs to another user; run this "
            "command as that user"
        ) from error
    except OSError:
        return Service()  # it has ended since
    return _RunService(releases, None)


_QUIET: Dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def _systemctl(*arguments: str) -> None:
    argv: Sequence[str] = [*(privileged() or []), "systemctl", *arguments]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        raise InputError(f"systemctl {' '.join(arguments)}: {_last_line(done.stderr)}")


def _properties(unit_name: str) -> Dict[str, str]:
    names = "LoadState,ActiveState,Result,NRestarts"
    done = subprocess.run(
        ["systemctl", "show", "--property", names, "--", unit_name],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def _last_line(text: bytes) -> str:
    lines = [line for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    return printable(lines[-1].strip()[:300]) if lines else "no reason was given"
