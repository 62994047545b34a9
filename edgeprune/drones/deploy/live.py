"""Deployment onto a live drone over SSH: the missing parts are sent, its own agent installs them, and a broken link is
resumed.

    look      `edgeprune releases --json` there; an installation that cannot work is refused before anything is sent
    send      the envelope, and the pieces of those payloads that no release there has (`transfer`)
    install   `edgeprune install --incoming`: verify, engine, benchmark, switch, watch, roll back; followed from here

Every step may be repeated and goes on where it stopped. A drone's answers are untrusted, and checked.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from edgeprune_device import strict_json, version
from edgeprune_device.errors import EdgepruneError, GateError, InputError, Interrupted, SignatureError
from edgeprune_device.installation import restart
from edgeprune_device.installation.options import HEALTH_S, MAX_DROP
from edgeprune_device.trust.bundle import Bundle

from edgeprune.drones.deploy import DEFAULT_ROOT, DeploySettings, transfer
from edgeprune.drones.ssh import RETRIES, Link, RemoteError, parse, shown

__all__ = ["There", "Where", "deploy", "look", "parse_there", "releases", "rollback", "where"]

#: Finds the agent: that of `edgeprune setup`, that of an image in the root $1, or one that was installed otherwise.
_FIND = """
for agent in "$HOME/.local/share/edgeprune/agent/bin/edgeprune" "$1/agent/bin/edgeprune" "$(command -v edgeprune)"; do
  [ -x "$agent" ] && break
  agent=
done
[ "$agent" ] || { echo "edgeprune: no agent" >&2; exit 127; }
"""
#: Prints its path, that of its Python, and its output on the releases below $1.
_LOOK = f"""{_FIND}
python=${{agent%/*}}/python
[ -x "$python" ] || python=python3
printf '%s\\n%s\\n' "$agent" "$python"
exec "$agent" releases "$1" --json
"""
_TELL = f"""{_FIND}
shift
exec "$agent" "$@"
"""
#: Makes the root $1, by sudo where only root may.
_MAKE = """
[ -d "$1" ] || mkdir -p -- "$1" 2>/dev/null || sudo -n install -d -o "$(id -u)" -g "$(id -g)" -- "$1"
"""
_SPARE_BYTES = 32 << 20  # as the installation requires it
_SHA256 = "[0-9a-f]{64}"


@dataclass(frozen=True)
class Where:
    """The address of releases on a drone.

    Example: Where("pilot@drone:2222", PurePosixPath("/opt/edgeprune")).

    Attributes:
        target: The drone, as `ssh.parse` takes it.
        root: The folder of the releases there.
    """

    target: str
    root: PurePosixPath


@dataclass(frozen=True)
class There:
    """The state of a drone before anything is sent.

    Attributes:
        agent: The agent's path there.
        python: Its Python there.
        version: The agent's version.
        problem: The reason why nothing can be installed; else None.
        free_bytes: Free space there.
        counter: The confirmed counter, or None.
        current: The current release, or None.
        held: SHA-256 of payloads that it has.
        trusted: Fingerprints of trusted keys.
        revoked: Fingerprints of revoked keys.
        systemd: Whether systemd runs there.
        root_user: Whether the user is root, or has sudo without a password.
        service: The service that runs the current release, or None.
    """

    agent: str
    python: str
    version: str
    problem: str | None
    free_bytes: int
    counter: int | None
    current: str | None
    held: tuple[str, ...]
    trusted: tuple[str, ...]
    revoked: tuple[str, ...]
    systemd: bool
    root_user: bool
    service: str | None


def where(text: str, root: PurePosixPath = DEFAULT_ROOT) -> Where:
    """Split the address of releases into the drone and the folder.

    Example: "pilot@drone:2222:/data/edgeprune" -> Where("pilot@drone:2222", PurePosixPath("/data/edgeprune")).

    Args:
        text: The address.
        root: The folder where the address has none.

    Raises:
        InputError: It is neither a drone nor a drone and a folder.
    """
    target, colon, path = text.partition(":/")
    parse(target)
    found = PurePosixPath(f"/{path}") if colon and path else root
    if colon and (not path or ".." in found.parts or not path.isprintable()):
        raise InputError(f"{text!r}: the folder on the drone must be an absolute path below /, without ..")
    return Where(target, found)


def deploy(
    bundle: Bundle, to: Where, settings: DeploySettings, say: Callable[[str], None], *, retries: int = RETRIES
) -> dict[str, Any] | None:
    """Deploy onto one drone.

    Args:
        bundle: The bundle.
        to: The drone and the folder.
        settings: The settings of the deployment.
        say: Called with the progress, as text.
        retries: Of the link.

    Returns:
        The record of the release, from the drone; None after a dry run.

    Raises:
        InputError: It cannot be installed there.
        GateError: The release lost too much accuracy there, or did not run: the former release is in use.
        SignatureError: The bundle's key is not trusted there, or the bundle is older than the confirmed one.
        LinkError: The link failed for good; the same command goes on where it stopped.
    """
    with Link(to.target, retries=retries, say=say) as link:
        there = look(link, to.root)
        check(there, bundle, to.target, settings)
        if there.version != version():
            say(f"{to.target}: note: its agent is {there.version}, this is {version()}: edgeprune setup renews it")
        folder = str(to.root / "incoming" / bundle.sha256)
        wanted = transfer.pieces(bundle, there.held)
        lacks = transfer.lacking(wanted, transfer.held(link, there.python, folder))
        _check_room(there, bundle, lacks, to.target)
        _say_what(bundle, there, wanted, lacks, to.target, say)
        if settings.dry_run:
            for line in _steps(there, bundle, settings):
                say(f"{to.target}: would {line}")
            return None
        link.run(_MAKE, str(to.root))
        for last in (False, True):
            _send(link, bundle, lacks, there, folder, say)
            try:
                return _install(link, bundle, there, to, settings, say)
            except (InputError, GateError):
                # A power cut or a failing card may have damaged the pieces that had arrived: they were removed there.
                lacks = transfer.lacking(wanted, transfer.held(link, there.python, folder))
                if last or not lacks:
                    raise
                say(f"{to.target}: {len(lacks)} pieces were damaged there, and are sent anew")
    raise AssertionError


def look(link: Link, root: PurePosixPath) -> There:
    """Ask the drone for its state.

    Raises:
        InputError: It has no agent or one that is too old, or its answer is malformed.
        LinkError: The link failed for good.
    """
    try:
        answer = link.run(_LOOK, str(root), timeout_s=600)
    except RemoteError as error:
        raise _explained(error, link.target) from error
    return parse_there(answer, link.target)


def parse_there(answer: bytes, what: str) -> There:
    """Parse the output of `_LOOK`.

    Raises:
        InputError: It is no such output.
    """
    agent, python, rest = (*answer.split(b"\n", 2), b"", b"")[:3]
    data = strict_json.loads(rest, f"{what}: edgeprune releases")
    if not isinstance(data, dict) or data.get("schema_version") != 1:
        number = data.get("schema_version") if isinstance(data, dict) else None
        raise InputError(
            f"{what}: its agent speaks another language (schema {shown(repr(number), 40)}): edgeprune setup {what} "
            "brings the one that belongs to this edgeprune"
        )

    def take(key: str, kind: type, optional: bool = False) -> Any:
        value = data.get(key)
        if optional and value is None:
            return None
        if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or value < 0)):
            raise InputError(f"{what}: does not say what is there as it should: {key} {shown(repr(value))}")
        return shown(value, 1000) if kind is str else value

    def texts(key: str) -> tuple[str, ...]:
        return tuple(text for text in take(key, list) if isinstance(text, str))

    if not re.fullmatch(rb"/[^\0-\x1f]{1,500}", agent) or not re.fullmatch(rb"python3|/[^\0-\x1f]{1,500}", python):
        raise InputError(f"{what}: does not say where its agent is ({shown(repr(agent))})")
    return There(
        agent=agent.decode("utf-8", "surrogateescape"),
        python=python.decode("utf-8", "surrogateescape"),
        version=take("agent", str),
        problem=take("problem", str, optional=True),
        free_bytes=take("free_bytes", int),
        counter=take("counter", int, optional=True),
        current=take("current", str, optional=True),
        held=tuple(text for text in texts("held") if re.fullmatch(_SHA256, text)),
        trusted=texts("trusted"),
        revoked=texts("revoked"),
        systemd=take("systemd", bool),
        root_user=take("root_user", bool),
        service=take("service", str, optional=True),
    )


def check(there: There, bundle: Bundle, what: str, settings: DeploySettings) -> None:
    """Raise the errors that would end the installation, before anything is sent.

    Args:
        there: The state of the drone.
        bundle: The bundle.
        what: Begins the message of an error.
        settings: The settings of the deployment.

    Raises:
        InputError: Nothing can be installed there, or a systemd unit cannot be written.
        SignatureError: The bundle's key is revoked or not trusted there, or the bundle is older than the confirmed one.
    """
    if there.problem:
        raise InputError(f"{what}: nothing can be installed there: {there.problem}")
    if bundle.key_fingerprint in there.revoked:
        raise SignatureError(f"{what}: {bundle.key_fingerprint}, which signed {bundle.path}, was revoked there")
    if bundle.key_fingerprint not in there.trusted and not settings.allow_untrusted:
        raise SignatureError(
            f"{what}: {bundle.path} is signed by {bundle.key_fingerprint}, a key that is not trusted there: edgeprune "
            f"setup {what} lets it trust this host's, edgeprune keys trust there another one, --allow-untrusted none"
        )
    counter = bundle.manifest.counter
    if there.counter is not None and counter < there.counter and not settings.allow_older:
        raise SignatureError(
            f"{what}: {bundle.path} is older than what was in use there (its counter is {counter}, there "
            f"{there.counter} holds): deploy a newer build, or say --allow-older"
        )
    if settings.source is not None and not (there.systemd and there.root_user):
        lacks = "there is no systemd" if not there.systemd else "only root writes it, and sudo asks for a password"
        raise InputError(f"{what}: --source writes a systemd unit, and {lacks} there: leave it out")


def releases(where_: str, as_json: bool) -> None:
    """`edgeprune releases user@drone[:/path]`: print the output of its agent."""
    found = where(where_)
    with Link(found.target) as link:
        said = _agent(link, found, "releases", str(found.root), *(["--json"] if as_json else []))
    if as_json:
        print(strict_json.pretty(strict_json.loads(said, f"{found.target}: edgeprune releases")), end="")
    else:
        for line in said.decode("utf-8", "replace").splitlines():
            print(shown(line, 1000))


def rollback(where_: str, to: str | None, unit: str | None = None) -> None:
    """`edgeprune rollback user@drone[:/path]`: let its agent roll back, and print its output.

    Args:
        where_: The drone and the folder, as `where` takes them.
        to: The release to go back to; None: the one before.
        unit: The systemd unit that is restarted.

    Raises:
        InputError: The drone has no agent, or its agent refuses.
        GateError: The agent's command failed with exit status 1.
        LinkError: The link failed.
    """
    found = where(where_)
    words = ["rollback", str(found.root), *_given("--to", to), *_given("--unit", unit)]
    with Link(found.target) as link:
        # Once only: run again after a broken link, it would go back one release further.
        script, arguments = _TELL, (str(found.root), *words)
        link.connect()
        try:
            with link.talk(script, *arguments) as session:
                session.feed(b"")
                while line := session.stdout.readline(1 << 12):
                    print(f"{found.target}: {shown(line.decode('utf-8', 'replace'), 1000)}", flush=True)
                session.end()
        except RemoteError as error:
            raise _explained(error, found.target) from error


# --- parts of deploy -------------------------------------------------------------------------------------------------


def _say_what(bundle: Bundle, there: There, wanted, lacks, what: str, say) -> None:
    size = sum(piece.size_bytes for piece in lacks)
    arrived = sum(piece.size_bytes for piece in wanted) - size
    kept = sum(p.size_bytes for p in bundle.manifest.payloads if p.sha256 in there.held)
    parts = [f"{size} bytes of {bundle.envelope_bytes + bundle.manifest.size_bytes} to send"]
    parts += [f"{kept} are in releases there"] if kept else []
    parts += [f"{arrived} have arrived before"] if arrived else []
    say(f"{what}: {', '.join(parts)}")


def _check_room(there: There, bundle: Bundle, lacks: Sequence[transfer.BundlePiece], what: str) -> None:
    sizes = [p.size_bytes for p in bundle.manifest.payloads]
    needs = sum(piece.size_bytes for piece in lacks) + bundle.envelope_bytes + sum(sizes) + max(sizes, default=0)
    needs += _SPARE_BYTES
    if there.free_bytes < needs:
        raise InputError(
            f"{what}: {there.free_bytes / 1e6:.0f} MB are free there, and {needs / 1e6:.0f} MB are needed: free some, "
            "or --keep fewer releases"
        )


def _send(link: Link, bundle: Bundle, lacks, there: There, folder: str, say) -> None:
    try:
        transfer.send(link, bundle.path, lacks, there.python, folder)
    except KeyboardInterrupt:
        say(f"{link.target}: interrupted: nothing changed there; the same command goes on where it stopped")
        raise


def _install(link: Link, bundle: Bundle, there: There, to: Where, settings: DeploySettings, say) -> dict[str, Any]:
    """Let the agent install the sent parts, and follow it."""
    result: dict[str, Any] = {}

    def line(text: bytes) -> None:
        data = strict_json.loads(text, f"{to.target}: edgeprune install")
        if isinstance(data, dict) and isinstance(data.get("result"), dict):
            result.update(data["result"])
        elif isinstance(data, dict):
            say(f"{to.target}: {shown(str(data.get('step')), 20):<8} {shown(str(data.get('text')), 1000)}")

    # After a broken link, the same ticket follows the same installation and gets its result.
    ticket = secrets.token_hex(16)
    command = [there.agent, "install", "--incoming", bundle.sha256, "--ticket", ticket, "--json"]
    try:
        link.follow('exec "$@"', *command, *_options(to.root, settings), line=line)
    except RemoteError as error:
        if not result:
            raise _explained(error, to.target) from error
    except KeyboardInterrupt:
        say(f"{to.target}: interrupted here; the installation goes on there, and the same command follows it")
        raise
    words = f"{to.target}: {shown(str(result.get('error')), 2000)}"
    if result.get("exit") == 0 and isinstance(result.get("release"), dict):
        return result["release"]
    raise {1: GateError, 130: Interrupted}.get(result.get("exit"), InputError)(words)


def _options(root: PurePosixPath, settings: DeploySettings) -> list[str]:
    """The options of `edgeprune install`."""
    return [
        "--root", str(root), "--precision", settings.precision, "--keep", str(settings.keep),
        *_given("--health", settings.health_s), *_given("--max-drop", settings.max_drop),
        *_given("--unit", settings.unit), *_given("--source", settings.source), *_given("--output", settings.output),
        *(["--allow-untrusted"] if settings.allow_untrusted else []),
        *(["--allow-older"] if settings.allow_older else []),
    ]  # fmt: skip


def _given(option: str, value: Any) -> list[str]:
    return [] if value is None else [f"{option}={value:g}" if isinstance(value, float) else f"{option}={value}"]


def _steps(there: There, bundle: Bundle, settings: DeploySettings) -> list[str]:
    """The steps of an installation, for a dry run."""
    drop = MAX_DROP if settings.max_drop is None else settings.max_drop
    health_s = HEALTH_S if settings.health_s is None else settings.health_s
    unit = settings.unit or (restart.UNIT if settings.source is not None else there.service)
    back = there.current or "nothing"
    return [
        "verify signature, hashes, key and counter there",
        f"build the engine there where one is needed, and measure (precision {settings.precision}; mAP50-95 may drop "
        f"by {drop:g})",
        *([f"write {restart.UNIT} for {settings.source}"] if settings.source is not None else []),
        f"switch from {there.current or 'no release'} to {bundle.sha256[:16]}",
        "restart nothing, as no service runs it there"
        if unit in (None, restart.Service.description)
        else f"restart {unit}, watch it for {health_s:g} s and, where it fails, go back to {back}",
        f"keep {settings.keep} releases",
    ]


def _agent(link: Link, found: Where, *words: str) -> bytes:
    """The output of the agent."""
    try:
        return link.run(_TELL, str(found.root), *words, timeout_s=600)
    except RemoteError as error:
        raise _explained(error, found.target) from error


def _explained(error: RemoteError, what: str) -> EdgepruneError:
    """The agent's last line, as the kind of error that its exit status states."""
    if error.code == 127 and error.reason.endswith("no agent"):
        return InputError(f"{what}: there is no edgeprune agent: edgeprune setup {what}")
    if "unknown command" in error.reason:
        return InputError(f"{what}: its agent cannot do this yet: edgeprune setup {what}")
    words = f"{what}: {error.reason.removeprefix('edgeprune: error: ')}"
    return GateError(words) if error.code == 1 else InputError(words)
