"""Deployment onto a live drone over SSH: the host sends the missing parts, the drone's agent installs them, and a
broken link is resumed.

    look      `edgeprune releases --json` there; an impossible installation is refused before anything is sent
    send      the envelope, and the pieces of the payloads that no release there has (`transfer`)
    install   `edgeprune install --incoming`: verify, engine, benchmark, switch, watch, roll back; the host follows it

Every step may be repeated and continues where it stopped. A drone's answers are untrusted, and are checked.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

from edgeprune_device import strict_json, version
from edgeprune_device.agent import COMMAND, HOME_COMMAND
from edgeprune_device.errors import EdgepruneError, GateError, InputError, Interrupted, SignatureError
from edgeprune_device.installation import restart
from edgeprune_device.installation.options import longest_s
from edgeprune_device.option import named
from edgeprune_device.options import HEALTH, INSTALL_MAX_DROP, LIMIT
from edgeprune_device.progress import Say
from edgeprune_device.trust.bundle import Bundle

from edgeprune.drones.deploy import DEFAULT_ROOT, DeploySettings, transfer
from edgeprune.drones.deploy.transfer import BundlePiece
from edgeprune.drones.ssh import RETRIES, Link, RemoteError, parse, shown

__all__ = ["There", "Where", "deploy", "look", "parse_there", "releases", "rollback", "where"]

#: Finds the agent: from `edgeprune setup`, from an image in the root $1, or on the PATH.
_FIND = f"""
for agent in "$HOME/{HOME_COMMAND}" "$1/{COMMAND}" "$(command -v edgeprune)"; do
  [ -x "$agent" ] && break
  agent=
done
[ "$agent" ] || {{ echo "edgeprune: no agent" >&2; exit 127; }}
"""
#: Prints the agent's path, the path of its Python, and its output on the releases below $1.
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
#: Makes the root $1, with sudo if only root may.
_MAKE = """
[ -d "$1" ] || mkdir -p -- "$1" 2>/dev/null || sudo -n install -d -o "$(id -u)" -g "$(id -g)" -- "$1"
"""
_ABORT = "edgeprune install --abort, on the drone, ends the installation"
_SPARE_BYTES = 32 << 20  # the installation requires it
_SHA256 = "[0-9a-f]{64}"

_T = TypeVar("_T")


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
        problem: The reason why nothing can be installed, or None.
        free_bytes: Free space there.
        counters: The confirmed counter of each key; None if unknown.
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
    counters: dict[str, int] | None
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
        root: The folder if the address has none.

    Raises:
        InputError: The text is neither a drone nor a drone and a folder.
    """
    target, colon, path = text.partition(":/")
    parse(target)
    folder = PurePosixPath("/" + path.lstrip("/")) if colon else root
    if colon and (len(folder.parts) < 2 or ".." in folder.parts or not path.isprintable()):
        raise InputError(f"{text!r}: the folder on the drone must be an absolute path below /, without ..")
    return Where(target, folder)


def deploy(
    bundle: Bundle, to: Where, settings: DeploySettings, say: Say, *, retries: int = RETRIES
) -> dict[str, Any] | None:
    """Deploy onto one drone.

    Args:
        bundle: The bundle.
        to: The drone and the folder.
        settings: The settings of the deployment.
        say: Called with the progress, as text.
        retries: Retries of the link.

    Returns:
        The record of the release, from the drone; None after a dry run.

    Raises:
        InputError: The bundle cannot be installed there.
        GateError: The release lost too much accuracy there, or did not run; the former release is in use.
        SignatureError: The bundle's key is not trusted there, or the bundle is older than the newest confirmed release.
        LinkError: The link failed for good; the same command continues where it stopped.
    """
    with Link(to.target, retries=retries, say=say) as link:
        there = look(link, to.root)
        check(there, bundle, to.target, settings)
        if there.version != version():
            say(
                f"{to.target}: note: the agent's version differs (found {there.version}, this host has {version()}); "
                "update it with edgeprune setup"
            )
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
                # A power cut or a failing card may have damaged received pieces, which the drone has removed.
                lacks = transfer.lacking(wanted, transfer.held(link, there.python, folder))
                if last or not lacks:
                    raise
                say(f"{to.target}: {len(lacks)} pieces were damaged on the drone; sending them again")
    raise AssertionError


def look(link: Link, root: PurePosixPath) -> There:
    """Ask the drone for its state.

    Raises:
        InputError: The drone has no agent or an outdated one, or its answer is malformed.
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
        InputError: The output is malformed.
    """
    agent, python, rest = (*answer.split(b"\n", 2), b"", b"")[:3]
    data = strict_json.loads(rest, f"{what}: edgeprune releases")
    if not isinstance(data, dict) or data.get("schema_version") != 2:
        number = data.get("schema_version") if isinstance(data, dict) else None
        raise InputError(
            f"{what}: unsupported agent (found schema {shown(repr(number), 40)}, expected 2); install a matching one "
            f"with edgeprune setup {what}"
        )

    def path(output: bytes, program: str) -> str:
        text = output.decode("utf-8", "surrogateescape")
        if not re.fullmatch(rb"/[^\0-\x1f]{1,500}", output):
            raise InputError(
                f"{what}: invalid path of {program} (found {shown(repr(text))}, expected an absolute path); "
                f"install the agent again with edgeprune setup {what}"
            )
        return text

    def take(key: str, kind: type[_T]) -> _T:
        value = data.get(key)
        no_count = kind is int and isinstance(value, int) and (isinstance(value, bool) or value < 0)
        if no_count or not isinstance(value, kind):
            raise InputError(f"{what}: unexpected answer to edgeprune releases: field {key} is {shown(repr(value))}")
        return value

    def text(key: str) -> str:
        return shown(take(key, str), 1000)

    def texts(key: str) -> tuple[str, ...]:
        return tuple(text for text in take(key, list) if isinstance(text, str))

    def optional(key: str) -> str | None:
        return None if data.get(key) is None else text(key)

    def counters() -> dict[str, int]:
        by_key = take("counters", dict)
        if not all(type(value) is int and value >= 0 for value in by_key.values()):
            raise InputError(
                f"{what}: unexpected answer to edgeprune releases: field counters is {shown(repr(by_key))}"
            )
        return by_key

    return There(
        agent=path(agent, "the agent"),
        python="python3" if python == b"python3" else path(python, "Python"),
        version=text("agent"),
        problem=optional("problem"),
        free_bytes=take("free_bytes", int),
        counters=None if data.get("counters") is None else counters(),
        current=optional("current"),
        held=tuple(text for text in texts("held") if re.fullmatch(_SHA256, text)),
        trusted=texts("trusted"),
        revoked=texts("revoked"),
        systemd=take("systemd", bool),
        root_user=take("root_user", bool),
        service=optional("service"),
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
        SignatureError: The bundle's key is revoked or not trusted there, or the bundle is older than the newest
            confirmed release.
    """
    if there.problem:
        raise InputError(f"{what}: no bundle can be installed: {there.problem}")
    if bundle.key_fingerprint in there.revoked:
        raise SignatureError(
            f"{what}: {bundle.path} is signed by {bundle.key_fingerprint}, a key that is revoked on the drone; sign "
            "the bundle with another key (edgeprune keys make)"
        )
    if bundle.key_fingerprint not in there.trusted and not settings.allow_untrusted:
        raise SignatureError(
            f"{what}: {bundle.path} is signed by {bundle.key_fingerprint}, a key that is not trusted on the drone; "
            f"trust this host's key with edgeprune setup {what}, or another key with edgeprune keys trust on the "
            f"drone, or give {named('allow_untrusted')}"
        )
    counter, least = bundle.manifest.counter, (there.counters or {}).get(bundle.key_fingerprint, 0)
    if counter < least and not settings.allow_older:
        raise SignatureError(
            f"{what}: {bundle.path} is older than the newest confirmed release of its key on the drone (found "
            f"counter {counter}, expected at least {least}); deploy a newer build, or give {named('allow_older')}; if "
            "this host's clock was wrong, start a new count with edgeprune keys make"
        )
    if settings.source is not None and not (there.systemd and there.root_user):
        lacks = "systemd does not run on the drone" if not there.systemd else "sudo asks for a password on the drone"
        raise InputError(f"{what}: {named('source')} writes a systemd unit, but {lacks}; leave the option out")


def releases(where_: str, as_json: bool) -> None:
    """`edgeprune releases user@drone[:/path]`: print the output of its agent."""
    address = where(where_)
    with Link(address.target) as link:
        answer = _agent(link, address, "releases", str(address.root), *(["--json"] if as_json else []))
    if as_json:
        print(strict_json.pretty(strict_json.loads(answer, f"{address.target}: edgeprune releases")), end="")
    else:
        for line in answer.decode("utf-8", "replace").splitlines():
            print(shown(line, 1000))


def rollback(where_: str, to: str | None, unit: str | None = None) -> None:
    """`edgeprune rollback user@drone[:/path]`: let its agent roll back, and print its output.

    Args:
        where_: The drone and the folder, as `where` takes them.
        to: The release to return to; None: the previous one.
        unit: The systemd unit to restart.

    Raises:
        InputError: The drone has no agent, or its agent refuses.
        GateError: The agent's command failed with exit status 1.
        LinkError: The link failed.
    """
    address = where(where_)
    words = ["rollback", str(address.root), *_given("--to", to), *_given("--unit", unit)]
    with Link(address.target) as link:
        # Only once: a second run after a broken link would go back one more release.
        script, arguments = _TELL, (str(address.root), *words)
        link.connect()
        try:
            with link.talk(script, *arguments) as session:
                session.feed(b"")
                while line := session.stdout.readline(1 << 12):
                    print(f"{address.target}: {shown(line.decode('utf-8', 'replace'), 1000)}", flush=True)
                session.end()
        except RemoteError as error:
            raise _explained(error, address.target) from error


# --- parts of deploy -------------------------------------------------------------------------------------------------


def _say_what(
    bundle: Bundle, there: There, wanted: Sequence[BundlePiece], lacks: Sequence[BundlePiece], what: str, say: Say
) -> None:
    size = sum(piece.size_bytes for piece in lacks)
    arrived = sum(piece.size_bytes for piece in wanted) - size
    kept = sum(p.size_bytes for p in bundle.manifest.payloads if p.sha256 in there.held)
    parts = [f"{size} bytes of {bundle.envelope_bytes + bundle.manifest.size_bytes} to send"]
    parts += [f"{kept} are already in releases on the drone"] if kept else []
    parts += [f"{arrived} arrived before"] if arrived else []
    say(f"{what}: {', '.join(parts)}")


def _check_room(there: There, bundle: Bundle, lacks: Sequence[BundlePiece], what: str) -> None:
    sizes = [p.size_bytes for p in bundle.manifest.payloads]
    needs = sum(piece.size_bytes for piece in lacks) + bundle.envelope_bytes + sum(sizes) + max(sizes, default=0)
    needs += _SPARE_BYTES
    if there.free_bytes < needs:
        raise InputError(
            f"{what}: too little free space on the drone ({there.free_bytes / 1e6:.0f} MB free, {needs / 1e6:.0f} MB "
            f"needed); free some, or keep fewer releases ({named('keep')})"
        )


def _send(link: Link, bundle: Bundle, lacks: Sequence[BundlePiece], there: There, folder: str, say: Say) -> None:
    try:
        transfer.send(link, bundle.path, lacks, there.python, folder)
    except KeyboardInterrupt:
        say(
            f"{link.target}: interrupted; nothing was changed on the drone, and the same command continues the transfer"
        )
        raise


def _install(link: Link, bundle: Bundle, there: There, to: Where, settings: DeploySettings, say: Say) -> dict[str, Any]:
    """Let the agent install the sent parts, and follow its progress."""
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
        link.follow('exec "$@"', *command, *_options(to.root, settings), line=line, limit_s=_longest_s(settings))
    except RemoteError as error:
        if not result:
            raise _explained(error, to.target) from error
    except InputError as error:
        raise InputError(f"{error}; the installation may continue on the drone: {_ABORT}") from error
    except KeyboardInterrupt:
        say(
            f"{to.target}: interrupted here, but the installation continues on the drone; run the command again to "
            f"follow it; {_ABORT}"
        )
        raise
    code, release = result.get("exit"), result.get("release")
    if code == 0 and isinstance(release, dict):
        return release
    kind = GateError if code == 1 else Interrupted if code == 130 else InputError
    raise kind(f"{to.target}: {shown(str(result.get('error')), 2000)}")


def _longest_s(settings: DeploySettings) -> float:
    """The time for which an installation there is followed, s; it exceeds the installation's own limits."""
    limit_s = LIMIT.default if settings.limit_s is None else settings.limit_s
    return longest_s(limit_s, HEALTH.default if settings.health_s is None else settings.health_s)


def _options(root: PurePosixPath, settings: DeploySettings) -> list[str]:
    """The options of `edgeprune install`."""
    return [
        "--root", str(root), "--precision", settings.precision, "--keep", str(settings.keep),
        *_given("--health", settings.health_s), *_given("--max-drop", settings.max_drop),
        *_given("--limit", settings.limit_s),
        *_given("--unit", settings.unit), *_given("--source", settings.source), *_given("--output", settings.output),
        *(["--allow-untrusted"] if settings.allow_untrusted else []),
        *(["--allow-older"] if settings.allow_older else []),
    ]  # fmt: skip


def _given(option: str, value: Any) -> list[str]:
    return [] if value is None else [f"{option}={value:g}" if isinstance(value, float) else f"{option}={value}"]


def _steps(there: There, bundle: Bundle, settings: DeploySettings) -> list[str]:
    """The steps of an installation, for a dry run."""
    from edgeprune_device.service import unit

    drop = INSTALL_MAX_DROP.default if settings.max_drop is None else settings.max_drop
    health_s = HEALTH.default if settings.health_s is None else settings.health_s
    unit_name = settings.unit or (unit.NAME if settings.source is not None else there.service)
    back = there.current or "nothing"
    return [
        "verify signature, hashes, key and counter on the drone",
        f"build the engine on the drone if needed, and measure (precision {settings.precision}; mAP50-95 may drop by "
        f"{drop:g})",
        *([f"write {unit.NAME} for {settings.source}"] if settings.source is not None else []),
        f"switch from {there.current or 'no release'} to {bundle.sha256[:16]}",
        "restart nothing, because no service runs the release on the drone"
        if unit_name in (None, restart.Service.description)
        else f"restart {unit_name}, watch it for {health_s:g} s and, if it fails, go back to {back}",
        f"keep {settings.keep} releases",
    ]


def _agent(link: Link, address: Where, *words: str) -> bytes:
    """The output of the agent."""
    try:
        return link.run(_TELL, str(address.root), *words, timeout_s=600)
    except RemoteError as error:
        raise _explained(error, address.target) from error


def _explained(error: RemoteError, what: str) -> EdgepruneError:
    """The agent's last line as the error type for its exit status."""
    if error.code == 127 and error.reason.endswith("no agent"):
        return InputError(f"{what}: no edgeprune agent on the drone; install it with edgeprune setup {what}")
    if "unknown command" in error.reason:
        return InputError(f"{what}: the agent is too old for this command; update it with edgeprune setup {what}")
    words = f"{what}: {error.reason.removeprefix('edgeprune: error: ')}"
    return GateError(words) if error.code == 1 else InputError(words)
