"""Restarts the program that runs the current release, and watches it until it is healthy with it or has failed.

There are three cases. `edgeprune run`, under systemd or not, reports its state in `run/status.json`. Of another systemd
unit only systemd reports the state. Where no service runs, the user's own programs read `current` when they start.
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
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from edgeprune_device import files
from edgeprune_device.errors import InputError
from edgeprune_device.printable import printable
from edgeprune_device.releases import Release, Releases
from edgeprune_device.service import status as account
from edgeprune_device.service.unit import NAME as UNIT

__all__ = ["UNIT", "Service", "check_unit", "command", "find", "privileged", "status", "systemd_runs", "write_unit"]

UNIT_FILE = Path("/etc/systemd/system") / UNIT
_SYSTEMD = Path("/run/systemd/system")
_UNIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.@\\-]{0,200}")
_FRESH_S = 15.0  # `edgeprune run` writes about every second
_START_S = 120.0  # until the first status, which then decides
_LONGEST_S = 1800.0  # until it is healthy: it may be building an engine
_POLL_S = 0.25


def systemd_runs() -> bool:
    """Whether systemd is this system's first process, as sd_booted(3) checks it."""
    return _SYSTEMD.is_dir()


def privileged() -> Optional[List[str]]:
    """The prefix that runs a command as root: empty for root, sudo where it asks for no password, None for neither."""
    if os.geteuid() == 0:
        return []
    with suppress(OSError, subprocess.TimeoutExpired):
        if subprocess.run(["sudo", "-n", "true"], **_QUIET, timeout=10).returncode == 0:
            return ["sudo", "-n"]
    return None


def command() -> Path:
    """The path of this environment's `edgeprune`, under the name that survives `edgeprune setup`."""
    own = Path(sys.prefix) / "bin" / "edgeprune"
    stable = Path(os.path.expanduser("~/.local/share/edgeprune/agent/bin/edgeprune"))
    return stable if os.path.realpath(str(stable)) == os.path.realpath(str(own)) else own


_WRITE = 'cat >"$1.new" && chmod 644 "$1.new" && sync && mv "$1.new" "$1"'


def check_unit() -> List[str]:
    """The prefix that runs a command as root, where a unit can be written.

    Raises:
        InputError: A unit cannot be written here.
    """
    if not systemd_runs():
        raise InputError("--source writes a systemd unit, and there is no systemd here: start edgeprune run by hand")
    prefix = privileged()
    if prefix is None:
        raise InputError(
            f"{UNIT_FILE}: only root writes it, and sudo asks for a password here: deploy as root, or write it by hand "
            "(edgeprune unit prints it) and leave out --source"
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
    _systemctl("enable", UNIT)


def status(releases: Releases) -> Optional[Dict[str, Any]]:
    """The last status of `edgeprune run`; None: there is none, or it is not alive."""
    return account.read(releases.root / "run" / "status.json", _FRESH_S)


class Service:
    """The case without a service: restarting and watching do nothing.

    Attributes:
        description: Text for messages.
    """

    description = "no service runs it here"

    def restart(self) -> None:
        """Make the service read `current` again.

        Raises:
            InputError: The service cannot be reached.
        """

    def watch(self, release: Release, health_s: float, say: Callable[[str], None]) -> Tuple[Optional[bool], str]:
        """Watch the service until it has been healthy with a release.

        Args:
            release: The release.
            health_s: How long it must be healthy, s.
            say: Called with a line of text.

        Returns:
            (True, the evidence), (False, the failure), or (None, why the health is not known yet).
        """
        return True, "nothing runs it here, so nothing was watched"


class _RunService(Service):
    """`edgeprune run` on these releases."""

    def __init__(self, releases: Releases, unit: Optional[str]):
        self._releases, self._unit = releases, unit
        self.description = f"edgeprune run, unit {unit}" if unit else "edgeprune run"

    def restart(self) -> None:
        if self._unit:
            _systemctl("restart", "--no-block", self._unit)
            return
        said = status(self._releases)
        if said is None:
            raise InputError("edgeprune run has ended meanwhile: start it again")
        try:
            os.kill(int(said["pid"]), signal.SIGHUP)
        except OSError as error:
            why = str(error.strerror).lower()
            raise InputError(f"edgeprune run (pid {said['pid']}) cannot be told: {why}") from error

    def watch(self, release: Release, health_s: float, say: Callable[[str], None]) -> Tuple[Optional[bool], str]:
        begin = heard = time.monotonic()
        healthy = waiting = None  # since when, the first frames
        restarts = 0
        while True:
            now = time.monotonic()
            current, record = self._releases.current(), self._releases.get(release.identity)
            if record.state == "bad":
                return False, record.reason or "the service gave it up"
            if current is None or current.identity != release.identity:
                return False, f"the service went back to {current}"
            said = status(self._releases)
            if said is not None and said.get("release") == release.identity:
                heard, frames = now, said.get("frames", 0)
                if said.get("restarts", 0) != restarts:
                    restarts, healthy = said.get("restarts", 0), None
                state = said.get("state")
                if record.state == "good" and state in ("running", "stopped"):
                    return True, f"{frames} frames, {restarts} restarts"  # it has confirmed itself
                if state == "running":
                    healthy, waiting = healthy or (now, frames), None
                    if now - healthy[0] >= health_s and frames > healthy[1]:
                        return True, f"{frames - healthy[1]} frames in {now - healthy[0]:.0f} s, {restarts} restarts"
                else:
                    healthy = None
                    waiting = (waiting or now) if state == "waiting" else None
                    if waiting is not None and now - waiting >= health_s:
                        return None, f"its source gives no frames ({printable(str(said.get('reason'))[:200])})"
                say(f"{state}, {frames} frames, {restarts} restarts")
            if now - heard > _START_S:
                return False, f"the service does not start: {self._why()}"
            if now - begin > _LONGEST_S + health_s:
                return False, f"it was not healthy for {health_s:g} s in {now - begin:.0f} s"
            time.sleep(_POLL_S)

    def _why(self) -> str:
        return f"see journalctl -u {self._unit}" if self._unit else "it has written no status"


class _Unit(Service):
    """A systemd unit of the user's own, of which only systemd's properties are known."""

    def __init__(self, unit: str):
        self._unit = unit
        self.description = f"unit {unit}"

    def restart(self) -> None:
        _systemctl("restart", "--no-block", self._unit)

    def watch(self, release: Release, health_s: float, say: Callable[[str], None]) -> Tuple[Optional[bool], str]:
        begin, since, restarts = time.monotonic(), None, None
        while True:
            now, shown = time.monotonic(), _properties(self._unit)
            active, count = shown.get("ActiveState", "unknown"), shown.get("NRestarts", "0")
            if active == "failed" or (restarts not in (None, count)):
                return False, f"unit {self._unit} is {active} ({shown.get('Result', '?')}), started again {count} times"
            restarts = count
            since = (since or now) if active == "active" else None
            if since is not None and now - since >= health_s:
                return True, f"unit {self._unit} was active for {now - since:.0f} s"
            if now - begin > _START_S + health_s:
                return False, f"unit {self._unit} is {active} after {now - begin:.0f} s"
            say(f"unit {self._unit} is {active}")
            time.sleep(_POLL_S)


def find(releases: Releases, unit: Optional[str] = None) -> Service:
    """Find the service that runs the current release.

    It is `unit`, else edgeprune.service where systemd knows it, else a running `edgeprune run`, else none.

    Args:
        releases: The releases.
        unit: Name of a systemd unit, or None.

    Returns:
        The service; where there is none, a `Service` that does nothing.

    Raises:
        InputError: There is no such unit, or the user may not restart it.
    """
    if unit is not None and not _UNIT_NAME.fullmatch(unit):
        raise InputError(f"{unit!r}: not a unit's name")
    if not systemd_runs():
        if unit is not None:
            raise InputError(f"--unit {unit}: there is no systemd here")
        return _RunService(releases, None) if status(releases) else Service()
    name = UNIT if unit is None else unit if "." in unit else f"{unit}.service"
    known = _properties(name).get("LoadState") == "loaded"
    if not known and unit is not None:
        raise InputError(f"--unit {unit}: systemd knows no such unit here")
    if not known:
        return _RunService(releases, None) if status(releases) else Service()
    if privileged() is None:
        raise InputError(f"unit {name} can be restarted by root only, and sudo asks for a password here")
    return _RunService(releases, name) if name == UNIT else _Unit(name)


_QUIET: Dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def _systemctl(*arguments: str) -> None:
    argv: Sequence[str] = [*(privileged() or []), "systemctl", *arguments]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        raise InputError(f"systemctl {' '.join(arguments)}: {_last_line(done.stderr)}")


def _properties(unit: str) -> Dict[str, str]:
    names = "LoadState,ActiveState,Result,NRestarts"
    done = subprocess.run(
        ["systemctl", "show", "--property", names, "--", unit],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def _last_line(text: bytes) -> str:
    lines = [line for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    return printable(lines[-1].strip()[:300]) if lines else "no reason was given"
