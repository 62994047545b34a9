"""A bundle becomes the release in use, or everything stays as it was.

    receive   beside the releases, whole                    switch    `current` names it, in one rename
    verify    signature, hashes, key, counter               restart   whoever runs it reads `current` again
    measure   engine, a short benchmark, the accuracy gate  watch     healthy for a while, or back to the former one
    commit    under its name, with its record               confirm   good; nothing older is installed from now on
                                                            tidy      old releases and their engines go

Kill it anywhere, or cut the power: `current` names a complete, verified release, and the same installation once more
goes on. Until the switch nothing has happened; after it the service itself confirms the release, or falls back.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Dict, List, Optional

from edgeprune_device import clock, files, interpreter, restart, strict_json
from edgeprune_device.errors import DeviceError, GateError, InputError, SignatureError
from edgeprune_device.printable import printable
from edgeprune_device.releases import BUNDLE, Release, Releases
from edgeprune_device.trust.bundle import Bundle

__all__ = ["HEALTH_S", "KEEP", "MAX_DROP", "Options", "Say", "install", "make_root", "problem", "roll_back"]

Say = Callable[[str, str], None]
KEEP, MAX_DROP, HEALTH_S = 3, 0.01, 30.0
_MEASURE_S, _WARMUP_S, _IDLE_S = 2.0, 2.0, 0.5
_SPARE_BYTES = 32 << 20
_TOLD_S = 5.0  # between two words of how a watched release does
_PATIENCE_S = 2.0  # whoever only asks whether somebody is at work holds the lock, too, for a moment
_STALE_S = 7 * 86400  # what a host sent, and never installed


@dataclass(frozen=True)
class Options:
    """How to install.

    - `max_drop`: mAP50-95 that may be lost against the host's figure on the same pictures
    - `keep`: releases that stay, this one included; `health_s`: how long it must be healthy, s
    - `unit`: the systemd unit to restart; None: `edgeprune run`, where it runs
    - `source`, `output`: write edgeprune.service, which runs this release on them; None: leave it as it is
    """

    precision: str = "auto"
    runtime: str = "auto"
    max_drop: float = MAX_DROP
    keep: int = KEEP
    health_s: float = HEALTH_S
    unit: Optional[str] = None
    source: Optional[str] = None
    output: Optional[str] = None
    allow_untrusted: bool = False
    allow_older: bool = False


@dataclass(frozen=True)
class _Measured:
    precision: Optional[str]
    runtime: Optional[str]
    report: Optional[str]
    accuracy: Optional[Dict[str, Optional[float]]]


def install(releases: Releases, source: Path, options: Options, say: Say) -> Release:
    """Install the bundle `source`, a file or a folder of `incoming/` (see `assembly`). The release, then in use.

    Its state is "good"; or still "trial" where it could not be judged yet, as a camera gives no frames.

    InputError: bad input, no room, no right. SignatureError: not intact, not trusted, or too old. GateError: it lost
    too much, or was not healthy: the former release is in use. BlockingIOError: another installation is at work.
    """
    make_root(releases.root)
    with releases.locked(_PATIENCE_S):
        if options.source is not None:
            restart.check_unit()
        restart.find(releases, options.unit)  # what cannot be restarted shows now, not at the end
        former = _current(releases)
        releases.sweep()
        if former is not None and source.name == former.bundle_sha256 and _in_use(releases, former, options):
            return _done(releases, former, source, options, say)  # killed as it tidied up: its parts may be gone
        say("receive", "the bundle")
        folder = releases.root / "releases" / f".new-{secrets.token_hex(4)}"
        try:
            _make(folder)
            bundle = _received(releases, source, folder / BUNDLE, options)
            if former is not None and bundle.sha256 == former.bundle_sha256 and _in_use(releases, former, options):
                return _done(releases, former, source, options, say)
            older = _check_counter(releases, bundle, options)
            say("verify", f"{bundle.manifest.name}, signed by {bundle.key_fingerprint}{_doubts(bundle, older)}")
            say("measure", "engine, a short benchmark, accuracy")
            measured = _measure(releases, bundle, folder, options)
            say("measure", _described(measured))
            _unpack(releases, bundle, folder, measured)
            release = _committed(releases, bundle, folder, measured, older, say)
        finally:
            shutil.rmtree(str(folder), ignore_errors=True)
        if options.source is not None:
            _write_unit(releases, options)
        service = restart.find(releases, options.unit)
        with releases.state_locked():
            say("switch", f"{former or 'nothing'} -> {release}")
            releases.switch(release)
        try:
            release = _judged(releases, service, release, former, options, say)
        except GateError:
            with suppress(InputError):  # one more: the one that failed, whose record says why
                releases.tidy(options.keep + 1)
                _tidy_engines(releases)
            raise
        _tidy(releases, source, options, say)
    return release


def roll_back(releases: Releases, to: Optional[str], unit: Optional[str], say: Say) -> Release:
    """Let the newest good release before the current one, or the one whose ID begins with `to`, be in use again; the
    one that was is bad from then on.

    InputError: there is none. SignatureError: it is damaged, or not trusted any more.
    """
    if not releases.root.is_dir():
        raise InputError(f"{releases.root}: no releases here")
    with releases.locked(_PATIENCE_S):
        service, former = restart.find(releases, unit), _current(releases)
        target = releases.get(to) if to is not None else releases.fallback()
        if target is None:
            raise InputError(f"{releases.root}: there is no good release to go back to (see edgeprune releases)")
        if target == former:
            raise InputError(f"{target} is in use already")
        say("verify", str(target))
        releases.open(target)
        with releases.state_locked():
            if target.state == "bad":
                target = releases.mark(replace(target, starts=0), "trial")
            say("switch", f"{former or 'nothing'} -> {target}")
            releases.switch(target)
            if former is not None and target.state == "good":  # else it is what a trial falls back to
                releases.mark(former, "bad", "rolled back by hand")
        say("restart", service.description)
        service.restart()
        healthy, why = service.watch(target, 2.0, lambda text: None)
        say("watch", why)
        if healthy is False:
            raise GateError(f"{target} is in use again, but: {why}")
        if target.state == "trial" and healthy:
            with releases.state_locked():
                target = releases.confirm(target)
                if former is not None:
                    releases.mark(former, "bad", "rolled back by hand")
    return target


def make_root(root: Path) -> None:
    """Make the root and what is in it; where only root could, and sudo asks for no password, by sudo."""
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o755)
    except PermissionError as error:
        prefix = restart.privileged()
        owner = ["-o", str(os.getuid()), "-g", str(os.getgid())]
        make = [*(prefix or []), "install", "-d", *owner, str(root)]
        if not prefix or subprocess.run(make, stdin=subprocess.DEVNULL).returncode:
            raise InputError(_not_ours(root)) from error
    except OSError as error:
        raise InputError(f"{root}: cannot be made ({str(error.strerror).lower()})") from error
    why = problem(root)
    if why is not None:
        raise InputError(why)
    for name in ("releases", "incoming", "run"):
        _make(root / name)


def problem(root: Path) -> Optional[str]:
    """Why nothing can be installed below `root`, in one line; None where it can. Makes nothing."""
    there = root
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return f"{there}: is not a folder"
    if os.geteuid() == 0 and there == root and there.stat().st_uid != 0:
        # What root writes there, the service of its owner could not change.
        return f"{root}: belongs to user {there.stat().st_uid}: install as that user, not as root"
    if os.access(str(there), os.W_OK | os.X_OK) or (there != root and restart.privileged() is not None):
        return None
    return _not_ours(root)


def _not_ours(root: Path) -> str:
    return f"{root}: this user may not write there: sudo install -d -o $USER {root}, or give another folder"


# --- receive, verify -------------------------------------------------------------------------------------------------


def _received(releases: Releases, source: Path, target: Path, options: Options) -> Bundle:
    if source.is_dir():
        from edgeprune_device import assembly

        assembly.assemble(source, releases, target, allow_untrusted=options.allow_untrusted)
    else:
        # Verified before it is copied, so that nothing wrong fills the disk; and after, as it may change meanwhile.
        Bundle.open(source, allow_untrusted=options.allow_untrusted)
        files.check_room(releases.root, source.stat().st_size + _SPARE_BYTES)
        with files.replacing(target) as temporary:
            try:
                shutil.copyfile(str(source), str(temporary))
            except OSError as error:
                raise InputError(f"{target}: cannot be written ({str(error.strerror or error).lower()})") from error
    return Bundle.open(target, allow_untrusted=options.allow_untrusted)


def _check_counter(releases: Releases, bundle: Bundle, options: Options) -> bool:
    """Whether it is older than what this device has confirmed, which only --allow-older lets in."""
    counter, least = bundle.manifest.counter, releases.counter
    if counter >= least:
        return False
    if not options.allow_older:
        raise SignatureError(
            f"{bundle.manifest.name}: is older than what was installed here (its counter is {counter}, here {least} "
            "holds): a bundle from the past is refused, as anybody may send it again; --allow-older takes it"
        )
    return True


def _doubts(bundle: Bundle, older: bool) -> str:
    return ("" if bundle.trusted else ", NOT trusted here") + (", older than what was installed here" if older else "")


def _in_use(releases: Releases, former: Release, options: Options) -> bool:
    """Whether nothing is to be done but to say so."""
    if options.precision not in ("auto", former.precision) or options.runtime not in ("auto", former.runtime):
        return False
    with suppress(InputError, SignatureError):
        return former.state == "good" and options.source is None and releases.open(former).trusted == former.trusted
    return False


def _done(releases: Releases, release: Release, source: Path, options: Options, say: Say) -> Release:
    say("verify", f"{release} is in use already, and intact")
    _tidy(releases, source, options, say)
    return release


def _current(releases: Releases) -> Optional[Release]:
    with suppress(InputError):  # damaged: then it is none, and whatever is installed now takes its place
        return releases.current()
    return None


# --- measure ---------------------------------------------------------------------------------------------------------


def _measure(releases: Releases, bundle: Bundle, folder: Path, options: Options) -> _Measured:
    """By `edgeprune bench` in a process of its own, which builds the engine, too: native code that crashes there ends
    the installation, not this process. Its report waits for `edgeprune collect`."""
    from edgeprune_device.reports.report import BenchReport  # brings numpy, which whoever only follows does without

    path = folder / "report.json"
    _run_tool(
        releases,
        ["bench", str(bundle.path), "--runtime", options.runtime, "--precision", options.precision,
         "--mode", "single", "--seconds", f"{_MEASURE_S:g}", "--warmup", f"{_WARMUP_S:g}", "--idle", f"{_IDLE_S:g}",
         "--max-drop", f"{options.max_drop:g}", "--report", str(path), *_untrusted(bundle)],
    )  # fmt: skip
    report = BenchReport.from_json(strict_json.loads(path.read_bytes(), "the benchmark's report"))
    path.unlink()
    return _Measured(
        precision=report.precision,
        runtime=report.runtime["name"],
        report=hashlib.sha256(report.to_bytes()).hexdigest(),
        accuracy={
            "map50_95": None if report.accuracy is None else report.accuracy.map50_95,
            "host_map50_95": None if report.host_accuracy is None else report.host_accuracy["map50_95"],
            "delta": report.map50_95_delta,
        },
    )


def _described(measured: _Measured) -> str:
    accuracy = measured.accuracy or {}
    figures = [accuracy.get(name) for name in ("map50_95", "host_map50_95")]
    here, host = ("not measured" if value is None else f"{value:.4f}" for value in figures)
    return f"{measured.precision} by {measured.runtime}, mAP50-95 {here}, on the host {host}"


def _run_tool(releases: Releases, arguments: List[str]) -> bytes:
    """An `edgeprune` of this environment. Its standard output; what it says last on failure, as the same kind of
    error."""
    environment = {**os.environ, "EDGEPRUNE_ENGINES": str(engines(releases))}
    process = subprocess.Popen(
        interpreter.command(_TOOL, *arguments, mortal=True),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip
    try:
        out, err = process.communicate()
    except BaseException:
        process.terminate()
        process.communicate()
        raise
    if process.returncode == 0:
        return out
    if process.returncode == -signal.SIGKILL:
        raise DeviceError(
            f"{arguments[0]}: was killed, most likely because memory ran out: the release in use runs beside it; stop "
            "the service meanwhile, or add swap"
        )
    lines = [line.strip() for line in err.decode("utf-8", "replace").splitlines() if line.strip()]
    words = lines[-1] if lines else f"it ended with {process.returncode}"
    words = words[len("edgeprune: error: ") :] if words.startswith("edgeprune: error: ") else words
    kind = {1: GateError, 2: InputError}.get(process.returncode, DeviceError)
    raise kind(f"{arguments[0]}: {printable(words[:1000])}")


_TOOL = "from edgeprune_device.cli import main; sys.exit(main())"


def engines(releases: Releases) -> Path:
    """Where the engines of these releases are kept."""
    return Path(os.environ.get("EDGEPRUNE_ENGINES") or releases.root / "engines")


def _untrusted(bundle: Bundle) -> List[str]:
    return [] if bundle.trusted else ["--allow-untrusted"]


# --- commit ----------------------------------------------------------------------------------------------------------


def _unpack(releases: Releases, bundle: Bundle, folder: Path, measured: _Measured) -> None:
    """The model in use as files, for other programs: the names are ours, none is the bundle's."""
    manifest = bundle.manifest
    entry = bundle.payloads[manifest.models[measured.precision]["payload"]]
    files.check_room(releases.root, entry.size_bytes + _SPARE_BYTES)
    files.write_atomic(folder / "model.onnx", bundle.read(entry.name), mode=0o644)
    files.write_atomic(folder / "labels.txt", "".join(f"{name}\n" for name in manifest.classes), mode=0o644)
    files.write_atomic(folder / "manifest.json", strict_json.pretty(manifest.to_json()), mode=0o644)
    if measured.runtime in ("trt", "rtx"):
        built = json.loads(
            _run_tool(releases, ["engine", str(bundle.path), "--precision", measured.precision, "--json",
                                 *_untrusted(bundle)])
        )  # fmt: skip
        if built[0]["path"]:
            plan = Path(built[0]["path"]).read_bytes()
            files.write_atomic(folder / "model.plan", plan, mode=0o644)


def _committed(releases: Releases, bundle: Bundle, folder: Path, measured: _Measured, older: bool, say: Say) -> Release:
    known = releases.all()
    release = Release(
        bundle_sha256=bundle.sha256,
        name=bundle.manifest.name,
        counter=bundle.manifest.counter,
        key_fingerprint=bundle.key_fingerprint,
        trusted=bundle.trusted,
        older=older,
        installed=clock.wall(),
        sequence=1 + max((r.sequence for r in known), default=0),
        precision=measured.precision,
        runtime=measured.runtime,
        report=measured.report,
        accuracy=measured.accuracy,
    )
    say("commit", str(release))
    place = releases.folder(release)
    files.write_atomic(folder / "release.json", strict_json.pretty(release.to_json()), mode=0o644)
    try:
        if not place.exists():
            files.sync_folder(folder)
            os.rename(str(folder), str(place))
            files.sync_folder(place.parent)
        else:  # it was here before: file by file, as it may be in use; its record last
            names = sorted((path.name for path in folder.iterdir()), key=lambda name: name == "release.json")
            for name in names:
                os.replace(str(folder / name), str(place / name))
            files.sync_folder(place)
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({str(error.strerror or error).lower()})") from error
    return release


# --- judge -----------------------------------------------------------------------------------------------------------


def _judged(
    releases: Releases,
    service: restart.Service,
    release: Release,
    former: Optional[Release],
    options: Options,
    say: Say,
) -> Release:
    """Restart, watch, confirm; or go back and raise GateError."""
    say("restart", service.description)
    try:
        service.restart()
        healthy, why = service.watch(release, options.health_s, _now_and_then(lambda text: say("watch", text)))
    except InputError as error:
        healthy, why = False, str(error)
    say("watch", why)
    with releases.state_locked():
        now = releases.get(release.identity)  # the service may have confirmed it, or given it up, by itself
        if healthy and now.state != "bad":
            say("confirm", f"{now} is good")
            return now if now.state == "good" else releases.confirm(now)
        if healthy is None and now.state != "bad":
            say("confirm", f"{now} stays on trial: {why}")
            return now
        back = _go_back(releases, now, former, why)
    say("restart", f"back to {back or 'nothing'}")
    with suppress(InputError):
        service.restart()
    raise GateError(
        f"{release} was rolled back: {now.reason or why}; " + (f"{back} is in use" if back else "nothing is in use")
    )


def _now_and_then(say: Callable[[str], None]) -> Callable[[str], None]:
    following = [0.0]

    def told(text: str) -> None:
        if time.monotonic() >= following[0]:
            following[0] = time.monotonic() + _TOLD_S
            say(text)

    return told


def _go_back(releases: Releases, release: Release, former: Optional[Release], why: str) -> Optional[Release]:
    """Switch to what works, unless the service has; what is in use then. First the switch: a release that is marked
    bad is never the one in use."""
    now = _current(releases)
    if now is not None and now.identity != release.identity:
        back: Optional[Release] = now
    else:
        back = None
        for candidate in (former, *(r for r in releases.all() if r.state == "good")):
            if candidate is None or candidate.identity == release.identity or candidate.state == "bad":
                continue
            with suppress(InputError, SignatureError):
                releases.open(candidate)
                back = candidate
                break
        releases.switch(back)
    if release.state != "bad":
        releases.mark(release, "bad", why)
    return back


def _write_unit(releases: Releases, options: Options) -> None:
    from edgeprune_device.service import unit
    from edgeprune_device.trust import keys

    text = unit.text(
        user=pwd.getpwuid(os.getuid()).pw_name,
        executable=str(restart.command()),
        root=str(releases.root),
        source=options.source,
        output=options.output or "-",
        home=str(keys.home()),
    )
    restart.write_unit(text)


# --- tidy ------------------------------------------------------------------------------------------------------------


def _tidy(releases: Releases, source: Path, options: Options, say: Say) -> None:
    gone = releases.tidy(options.keep)
    if gone:
        say("tidy", f"removed {', '.join(gone)}")
    _tidy_incoming(releases, source)
    _tidy_engines(releases)


def _tidy_incoming(releases: Releases, source: Path) -> None:
    """What this one was made from, and what was never finished."""
    incoming = releases.root / "incoming"
    for folder in incoming.iterdir():
        with suppress(OSError):
            stale = time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir())) > _STALE_S
            if stale or (source.is_dir() and folder.samefile(source)):
                shutil.rmtree(str(folder), ignore_errors=True)


def _tidy_engines(releases: Releases) -> None:
    """Engines of models that no release has any more; only of these releases' own folder."""
    folder = releases.root / "engines"
    kept = set()
    for release in releases.all():
        path = releases.folder(release) / "manifest.json"
        try:
            kept |= {entry["sha256"] for entry in json.loads(path.read_bytes())["payloads"]}
        except (OSError, ValueError, KeyError, TypeError):
            return  # what this one needs cannot be told: everything stays
    for path in folder.glob("*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(path.read_bytes())["engine"]["onnx_sha256"] not in kept:
                path.unlink()
                path.with_suffix(".plan").unlink()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True, mode=0o755)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({str(error.strerror).lower()})") from error
