"""Installs the agent on a drone without internet: wheels, a virtual environment, an exchange of keys.

Every step may be repeated and continues where it stopped. The new agent is made beside the former one, and replaces it
in one step after it has been tested.
"""

from __future__ import annotations

import hashlib
import re
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edgeprune_device import files, strict_json, version
from edgeprune_device.agent import AGENTS, COMMAND
from edgeprune_device.errors import InputError
from edgeprune_device.machine import board
from edgeprune_device.progress import Say
from edgeprune_device.trust import keys
from nacl.signing import VerifyKey

from edgeprune.drones import bootstrap, wheels
from edgeprune.drones.ssh import Link, RemoteError, shown

__all__ = ["BareBoard", "InstalledAgent", "install", "learn"]

#: Runs the probe once in every Python 3 there, and prints one line for each.
_PYTHONS = """
seen=
for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8; do
  path=$(command -v $name) && real=$(readlink -f "$path") || continue
  case "$seen" in *" $real "*) continue;; esac
  seen="$seen $real "
  "$path" -c "$1" 2>/dev/null
done
exit 0
"""
#: Lets the drone trust the key $3 as host $1, or as $1-$2 if another key has that name. Prints the file.
_TRUST = """
set -e
umask 022
folder=${EDGEPRUNE_HOME:-${XDG_CONFIG_HOME:-$HOME/.config}/edgeprune}/trusted
mkdir -p "$folder"
for file in "$folder"/*.pub; do
  if grep -qsx "$3" "$file"; then echo "$file"; exit 0; fi
done
file=$folder/$1.pub
[ ! -e "$file" ] || file=$folder/$1-$2.pub
echo "$3" >"$folder/.new.$$"
sync
mv "$folder/.new.$$" "$file"
sync
echo "$file"
"""
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+!_-]{0,40}")
_SPARE_BYTES = 50 << 20
_INSTALL_S = 3600  # enough for a slow card or an emulated processor

_T = TypeVar("_T")


@dataclass(frozen=True)
class BareBoard:
    """A drone before the agent is installed, with the Python that the agent will use.

    Attributes:
        python: The Python.
        executable: Its path there.
        home: The user's home folder there.
        free_bytes: Free space there.
        l4t: The version of L4T, such as "36.4.3", or None.
        report_key: The public half of the report key that a former agent made there, or None.
    """

    python: wheels.Python
    executable: str
    home: str
    free_bytes: int
    l4t: str | None
    report_key: VerifyKey | None

    def described(self) -> str:
        """A description, such as "aarch64, Python 3.10.12, glibc 2.35, JetPack 6.2 (L4T 36.4.3); installed: numpy
        1.21.5".
        """
        p = self.python
        parts = [p.machine, f"Python {p.version} ({self.executable})", f"glibc {'.'.join(map(str, p.glibc))}"]
        if self.l4t:
            parts.append(f"JetPack {board.jetpack(self.l4t) or 'unknown'} (L4T {self.l4t})")
        has = ", ".join(f"{name} {number}" for name, number in sorted(p.packages.items()))
        text = f"{', '.join(parts)}, {self.free_bytes / 1e9:.1f} GB free; installed: {has or 'no usable package'}"
        return shown(text, 1000)


@dataclass(frozen=True)
class InstalledAgent:
    """The result of `install`.

    Attributes:
        path: The agent's folder on the drone.
        command: The command in ~/.local/bin; None if another program has that name.
        fingerprint: The fingerprint of the drone's report key.
        enrolled: Whether the key is new here.
        trusted_as: The file of this host's key on the drone.
        doctor: The output of the drone's own check.
        healthy: Whether the check found every necessary part.
    """

    path: str
    command: str | None
    fingerprint: str
    enrolled: bool
    trusted_as: str
    doctor: str
    healthy: bool


def learn(link: Link) -> BareBoard:
    """Ask the drone for its Pythons and its board.

    Raises:
        InputError: The drone has no Python for the agent, or its answer is malformed.
        LinkError: The link failed for good.
    """
    answer = link.run(_PYTHONS, bootstrap.source("probe"), limit_bytes=1 << 16, timeout_s=600)
    probes = []
    for line in answer.splitlines():
        if line.startswith(b"{"):
            probes.append(parse_probe(line, link.target))
    usable = [b for b, why in probes if why is None]
    if not usable:
        why = "; ".join(reason for _, reason in probes if reason) or "no python3"
        raise InputError(f"{link.target}: no Python for the agent ({why}); install Python 3.8 or newer")
    # Prefer the Python with TensorRT, whose bindings work with one Python only; else "python3", which comes first.
    return next((b for b in usable if "tensorrt" in b.python.packages), usable[0])


def parse_probe(line: bytes, what: str) -> tuple[BareBoard, str | None]:
    """Parse a line of `bootstrap/probe.py`.

    Args:
        line: The line.
        what: Begins the message of an error.

    Returns:
        (the board, the reason why the agent cannot use this Python or None).

    Raises:
        InputError: The line is malformed.
    """
    answer = strict_json.loads(line, what)
    data = answer if isinstance(answer, dict) else {}

    def take(key: str, kind: type[_T], pattern: str) -> _T:
        value = data.get(key)
        if not isinstance(value, kind) or isinstance(value, bool) or not re.fullmatch(pattern, str(value)):
            raise InputError(f"{what}: unexpected answer from the drone's Python: field {key} is {shown(repr(value))}")
        return value

    packages = take("packages", dict, r"(?s).{0,2000}")
    known = {
        str(name)[:40]: number
        for name, number in packages.items()
        if isinstance(number, str) and _VERSION.fullmatch(number)
    }
    number = take("python", str, r"3\.\d{1,2}\.\d{1,3}[0-9a-z+]{0,10}")
    libc = re.fullmatch(r"glibc (\d{1,2})\.(\d{1,3})", str(data.get("libc")))
    l4t = board.parse_l4t(data["l4t"]) if isinstance(data.get("l4t"), str) else None
    public = data.get("report_key")
    bare_board = BareBoard(
        python=wheels.Python(
            re.sub("[a-z+].*", "", number),  # "3.13.0rc1" -> "3.13.0"
            take("machine", str, r"\w{1,20}"),
            (int(libc[1]), int(libc[2])) if libc else (0, 0),
            known,
        ),
        executable=take("executable", str, r"/[^\0-\x1f]{1,300}"),
        home=take("home", str, r"/[^\0-\x1f]{0,300}"),
        free_bytes=take("free_bytes", int, r"\d{1,18}"),
        l4t=l4t,
        report_key=keys.public(public, what) if isinstance(public, str) and public else None,
    )
    why = None
    if int(number.split(".")[1]) < 8:
        why = f"Python {number} is too old"
    elif data.get("implementation") != "CPython" or data.get("bits") != 64 or not libc:
        why = f"Python {number} is not a 64-bit CPython with glibc"
    elif data.get("venv") is not True:
        why = f"Python {number} has no module venv"
    return bare_board, why


def install(
    link: Link,
    name: str,
    *,
    extras: Sequence[str] = (),
    re_enrol: bool = False,
    say: Say = lambda text: None,
) -> InstalledAgent:
    """Install or update the agent, and enrol the drone here as `name`.

    Args:
        link: The link to the drone.
        name: The drone's name here.
        extras: Extras of the device package.
        re_enrol: Replace a different key under that name.
        say: Called with the progress, as text.

    Raises:
        InputError: The agent cannot run there, or space or wheels are missing.
        SignatureError: `name` has another key here.
        LinkError: The link failed for good; the same call continues where it stopped.
    """
    there = learn(link)
    say(f"{link.target}: {there.described()}")
    if there.report_key is not None:
        keys.check_enrolment(name, there.report_key, replace=re_enrol)
    base = f"{there.home.rstrip('/')}/{AGENTS}"
    with tempfile.TemporaryDirectory() as folder:
        pip, needed = wheels.fetch(there.python, extras)
        needed = [wheels.device_wheel(Path(folder)), *needed]
        agent = _agent_name(there, [pip, *needed])
        if not _holds(link, f"{base}/{agent}/complete"):
            size = sum(path.stat().st_size for path in (pip, *needed))
            # The wheels, the unpacked files (about four times as large), and the compiled ones.
            if there.free_bytes < 6 * size + _SPARE_BYTES:
                raise InputError(
                    f"{link.target}: too little free space on the drone ({there.free_bytes / 1e6:.0f} MB free, the "
                    f"agent needs about {(6 * size + _SPARE_BYTES) / 1e6:.0f} MB); free some"
                )
            say(f"sending {len(needed) + 1} wheels, {size / 1e6:.1f} MB")
            for path in (pip, *needed):
                link.put(path, f"{base}/wheels/{path.name}")
            say("installing")
        answer = link.run(
            'exec "$@"', there.executable, "-", base, COMMAND, agent, pip.name, *(path.name for path in needed),
            input=bootstrap.source("install").encode("utf-8"), limit_bytes=1 << 16, timeout_s=_INSTALL_S,
        )  # fmt: skip
    installed = strict_json.loads(answer, f"{link.target}: installing")
    command = installed.get("command") if isinstance(installed, dict) else None
    edgeprune = f"{base}/{COMMAND}"
    key = _report_key(link, edgeprune)
    enrolled = keys.enrol(name, key, replace=re_enrol)
    trusted_as = _trust(link)
    report, healthy = _doctor(link, edgeprune)
    return InstalledAgent(
        path=f"{base}/{agent}",
        command=shown(command) if isinstance(command, str) else None,
        fingerprint=keys.fingerprint(key),
        enrolled=enrolled,
        trusted_as=trusted_as,
        doctor=report,
        healthy=healthy,
    )


def _agent_name(there: BareBoard, paths: Sequence[Path]) -> str:
    """The name of the agent's folder, a hash of its content and of its Python."""
    what = [there.executable, there.python.version, *sorted((path.name, files.sha256(path)) for path in paths)]
    return f"agent-{version()}-{hashlib.sha256(strict_json.canonical(what)).hexdigest()[:12]}"


def _holds(link: Link, path: str) -> bool:
    return link.run('[ ! -e "$1" ] || echo yes', path).strip() == b"yes"


def _report_key(link: Link, edgeprune: str) -> VerifyKey:
    """The drone's report key, which its agent makes on first use."""
    public = link.run('exec "$1" keys export --report', edgeprune, limit_bytes=1 << 14)
    return keys.public(public.decode("ascii", "replace").strip(), f"{link.target}: edgeprune keys")


def host_name() -> str:
    """The name of this host's key on a drone, such as "laptop"."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip(".-")[:60] or "host"


def _trust(link: Link) -> str:
    """Let the drone run this host's bundles; return the path of the key's file there."""
    key = keys.load_or_create().verify_key
    public = bytes(key).hex()
    return shown(link.run(_TRUST, host_name(), public[:8], public, limit_bytes=1 << 14).decode("utf-8", "replace"))


def _doctor(link: Link, edgeprune: str) -> tuple[str, bool]:
    """The output of the check by the drone's agent, and whether every necessary part is there."""
    try:
        output, healthy = link.run('exec "$1" doctor', edgeprune, limit_bytes=1 << 17, timeout_s=600), True
    except RemoteError:
        output, healthy = link.run('"$1" doctor || :', edgeprune, limit_bytes=1 << 17, timeout_s=600), False
    return "\n".join(shown(line, 1000) for line in output.decode("utf-8", "replace").splitlines()), healthy
