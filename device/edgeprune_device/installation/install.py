"""Installs a bundle as the release in use, or leaves everything unchanged.

    receive   beside the releases, complete                 switch    `current` names it, in one rename
    verify    signature, hashes, key, counter               restart   the service reads `current` again
    measure   engine, a short benchmark, the accuracy gate  watch     healthy for a while, or back to the former release
    commit    under its name, with its record               confirm   good; older bundles are refused from now on
                                                            tidy      old releases and their engines are removed

After a kill or a power cut at any moment, `current` names a complete, verified release, and the same installation can
be run again and continues. Before the switch the device is unchanged. After it the service itself confirms the release,
or falls back.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import secrets
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Optional

from edgeprune_device import clock, files, strict_json
from edgeprune_device.errors import EdgepruneError, GateError, InputError, SignatureError, reason
from edgeprune_device.installation import contents, judge, measure, restart, root, tidy
from edgeprune_device.installation.options import InstallOptions, SayStep, measure_s
from edgeprune_device.option import named
from edgeprune_device.releases import BUNDLE, RECORD, Release, Releases, identity
from edgeprune_device.trust.bundle import Bundle

__all__ = ["install", "roll_back"]

_SPARE_BYTES = 32 << 20

_PATIENCE_S = 2.0  # `Releases.at_work` also holds the lock briefly


def install(releases: Releases, source: Path, options: InstallOptions, say: SayStep) -> Release:
    """Install a bundle.

    Args:
        releases: The releases.
        source: The bundle: a file, or a folder of `incoming/` (see `assembly`).
        options: How to install.
        say: Receives each step.

    Returns:
        The release, which is now in use. Its state is "good", or still "trial" if its health is not known yet, for
            example because a camera gives no frames.

    Raises:
        InputError: The input is invalid, the disk is full, or the user lacks a permission.
        SignatureError: The bundle is not intact, not trusted, or too old.
        GateError: The accuracy drop is too large, or the release was not healthy; the former release is in use.
        BlockingIOError: Another installation is in progress.
    """
    root.make_root(releases.root)
    with releases.locked(_PATIENCE_S):
        if options.source is not None:
            restart.check_unit()
        restart.find(releases, options.unit)  # a service that cannot be restarted fails now, not at the end
        releases.check_switch()
        former = judge.current(releases)
        releases.sweep()
        if former is not None and source.name == former.bundle_sha256:
            there = _in_use(releases, former, options)
            if there is not None:  # killed during cleanup: its parts may be gone
                return _done(releases, former, there, source, options, say)
        say("receive", "the bundle")
        folder = releases.root / "releases" / f".new-{secrets.token_hex(4)}"
        try:
            root.make_folder(folder)
            bundle = _received(releases, source, folder / BUNDLE, options)
            if former is not None and bundle.sha256 == former.bundle_sha256:
                there = _in_use(releases, former, options)
                if there is not None:
                    return _done(releases, former, there, source, options, say)
            older = _check_counter(releases, bundle, options)
            _check_place(releases.folder(identity(bundle.sha256)))
            say("verify", f"{bundle.manifest.name}, signed by {bundle.key_fingerprint}{_doubts(bundle, older)}")
            say("measure", "building the engine, a short benchmark, accuracy")
            measured = measure.measure(releases, bundle, folder, options)
            say("measure", measure.described(measured))
            _unpack(releases, bundle, folder, measured.precision, measured.runtime)
            release = _committed(releases, bundle, folder, measured, older, say)
        finally:
            shutil.rmtree(str(folder), ignore_errors=True)
        if options.source is not None:
            _write_unit(releases, options.source, options.output)
        service = restart.find(releases, options.unit)
        with releases.state_locked():
            say("switch", f"{former or 'nothing'} -> {release}")
            releases.switch(release)
        try:
            release = judge.judge(releases, service, release, former, options, say)
        except GateError:
            with suppress(EdgepruneError):  # the message is the failure's, not that of a repair
                back = releases.current()
                if back is not None:
                    _repair(releases, back, releases.open(back), say)
            with suppress(InputError):  # one more: the failed one, whose record has the reason
                releases.tidy(options.keep + 1)
                tidy.tidy_engines(releases)
            raise
        tidy.tidy(releases, source, options, say)
    return release


def roll_back(releases: Releases, to: Optional[str], unit: Optional[str], say: SayStep) -> Release:
    """Return to another release, and mark the former one bad.

    Args:
        releases: The releases.
        to: First characters of the release's ID; None: the newest good release that is not in use.
        unit: The systemd unit to restart; None: see `restart.find`.
        say: Receives each step.

    Returns:
        The release, which is now in use.

    Raises:
        InputError: There is no such release, or it is already in use.
        SignatureError: The release is damaged, or no longer trusted.
        GateError: The release is in use again, but not healthy.
        BlockingIOError: An installation is in progress.
    """
    if not releases.root.is_dir():
        raise InputError(f"{releases.root}: no such folder; pass the releases folder with {named('root')}")
    with releases.locked(_PATIENCE_S):
        service, former = restart.find(releases, unit), judge.current(releases)
        releases.check_switch()
        target = releases.get(to) if to is not None else releases.fallback()
        if target is None:
            raise InputError(f"{releases.root}: no good release to return to; see edgeprune releases")
        if target == former:
            raise InputError(f"{target}: already in use; give another release (edgeprune releases lists them)")
        if target.state != "good":
            _ = releases.counters  # they must be readable when the release is confirmed
        say("verify", str(target))
        _repair(releases, target, releases.open(target), say)
        with releases.state_locked():
            if target.state == "bad":
                target = releases.mark(replace(target, starts=0), "trial")
            say("switch", f"{former or 'nothing'} -> {target}")
            releases.switch(target)
            if former is not None and target.state == "good":  # otherwise a failed trial falls back to it
                releases.mark(former, "bad", "rolled back by hand")
        say("restart", service.description)
        service.restart()
        healthy, why = service.watch(target, 2.0, lambda text: None)
        say("watch", why)
        if healthy is False:
            raise GateError(f"{target}: in use again, but not healthy ({why})")
        if target.state == "trial" and healthy:
            with releases.state_locked():
                target = releases.confirm(target)
                if former is not None:
                    releases.mark(former, "bad", "rolled back by hand")
    return target


# --- receive, verify -------------------------------------------------------------------------------------------------
def _received(releases: Releases, source: Path, target: Path, options: InstallOptions) -> Bundle:
    if source.is_dir():
        from edgeprune_device.installation import assembly

        assembly.assemble(source, releases, target, allow_untrusted=options.allow_untrusted)
    else:
        # Verified before the copy, so that an invalid file cannot fill the disk, and after it, as the file may change.
        Bundle.open(source, allow_untrusted=options.allow_untrusted)
        files.check_room(releases.root, source.stat().st_size + _SPARE_BYTES)
        with files.replacing(target) as temporary:
            try:
                with open(source, "rb") as given, open(temporary, "wb", opener=files.opener) as stream:
                    shutil.copyfileobj(given, stream, 1 << 20)
            except OSError as error:
                raise InputError(f"{target}: cannot be written ({reason(error)})") from error
    return Bundle.open(target, allow_untrusted=options.allow_untrusted)


def _check_counter(releases: Releases, bundle: Bundle, options: InstallOptions) -> bool:
    """Whether the bundle is older than the newest confirmed release of its key; only allow_older permits this."""
    counter, least = bundle.manifest.counter, releases.counters.get(bundle.key_fingerprint, 0)
    if counter >= least:
        return False
    if not options.allow_older:
        raise SignatureError(
            f"{bundle.manifest.name}: older than the newest confirmed release of its key here (found counter "
            f"{counter}, expected at least {least}); deploy a newer build, or give {named('allow_older', True)}; if "
            "the host's clock was wrong, start a new count with edgeprune keys make on the host"
        )
    return True


def _check_place(place: Path) -> None:
    """InputError if the release cannot be committed because a file or folder of another kind has its name."""
    ours = (place / name for name in (BUNDLE, RECORD, *contents.NAMES))
    wrong = [place] if place.exists() and not place.is_dir() else [path for path in ours if path.is_dir()]
    if wrong:
        actual, expected = ("a folder", "a file") if wrong[0].is_dir() else ("a file", "a folder")
        raise InputError(f"{wrong[0]}: is in the way (found {actual}, expected {expected}); move it elsewhere")


def _doubts(bundle: Bundle, older: bool) -> str:
    return ("" if bundle.trusted else ", NOT trusted here") + (
        ", older than the newest confirmed release of its key" if older else ""
    )


def _in_use(releases: Releases, former: Release, options: InstallOptions) -> Optional[Bundle]:
    """The bundle of the release in use, if it is intact and the options are the same; nothing is measured again."""
    if options.precision not in ("auto", former.precision) or options.runtime not in ("auto", former.runtime):
        return None
    with suppress(InputError, SignatureError):
        if former.state == "good" and options.source is None:
            bundle = releases.open(former)
            return bundle if bundle.trusted == former.trusted else None
    return None


def _done(
    releases: Releases, release: Release, bundle: Bundle, source: Path, options: InstallOptions, say: SayStep
) -> Release:
    repaired = _repair(releases, release, bundle, say)
    say("verify", f"{release} is already in use and intact{' again' if repaired else ''}")
    tidy.tidy(releases, source, options, say)
    return release


# --- commit ----------------------------------------------------------------------------------------------------------
def _unpack(releases: Releases, bundle: Bundle, folder: Path, precision: Optional[str], runtime: Optional[str]) -> None:
    """Write the model in use as files, for other programs. The names are fixed; none comes from the bundle.

    Args:
        releases: The releases.
        bundle: The bundle, verified.
        folder: The folder to write to.
        precision: Precision of the model; None: an image's release, whose model is chosen whenever the service starts.
        runtime: The runtime, or None.
    """
    manifest, digests = bundle.manifest, {}
    if precision is not None:
        entry = bundle.payloads[manifest.models[precision]["payload"]]
        files.check_room(releases.root, entry.size_bytes + _SPARE_BYTES)
        files.write_atomic(folder / contents.MODEL, bundle.read(entry.name), mode=0o644)
        digests[contents.MODEL] = entry.sha256
    for name, text in contents.texts(manifest).items():
        files.write_atomic(folder / name, text, mode=0o644)
    if precision is not None and runtime in ("trt", "rtx"):
        built = json.loads(
            measure.run_tool(releases, ["engine", str(bundle.path), "--precision", precision, "--json",
                                        *measure.untrusted_option(bundle)], measure_s(0))
        )  # fmt: skip
        if built[0]["path"]:
            plan = Path(built[0]["path"]).read_bytes()
            files.write_atomic(folder / contents.PLAN, plan, mode=0o644)
            digests[contents.PLAN] = hashlib.sha256(plan).hexdigest()
    files.write_atomic(folder / contents.SUMS, contents.sums(bundle, digests), mode=0o644)


def _repair(releases: Releases, release: Release, bundle: Bundle, say: SayStep) -> bool:
    """Write the files for other programs again if one of them is damaged; return whether one was."""
    why = contents.problem(releases, release, bundle)
    if why is None:
        return False
    say("repair", f"{why}; restart the programs that use this file")
    _check_place(releases.folder(release))
    folder = releases.root / "releases" / f".new-{secrets.token_hex(4)}"
    try:
        root.make_folder(folder)
        _unpack(releases, bundle, folder, release.precision, release.runtime)
        _move(folder, releases.folder(release))
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)
    return True


def _move(folder: Path, place: Path) -> None:
    """Move a release's files one by one to its place, which may be in use; its list and its record last."""
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: (name == RECORD, name == contents.SUMS))
    try:
        for name in names:
            os.replace(str(folder / name), str(place / name))
        for name in set(contents.NAMES).difference(names):  # of another precision or runtime
            with suppress(FileNotFoundError):
                (place / name).unlink()
        files.sync_folder(place)
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({reason(error)})") from error


def _committed(
    releases: Releases, bundle: Bundle, folder: Path, measured: measure.Measured, older: bool, say: SayStep
) -> Release:
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
    files.write_atomic(folder / RECORD, strict_json.pretty(release.to_json()), mode=0o644)
    if place.exists():  # it was here before
        _move(folder, place)
        return release
    try:
        files.sync_folder(folder)
        os.rename(str(folder), str(place))
        files.sync_folder(place.parent)
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({reason(error)})") from error
    return release


def _write_unit(releases: Releases, source: str, output: Optional[str]) -> None:
    from edgeprune_device.service import unit
    from edgeprune_device.trust import keys

    text = unit.text(
        user=pwd.getpwuid(os.getuid()).pw_name,
        executable=str(restart.command()),
        root=str(releases.root),
        source=source,
        output=output or "-",
        home=str(keys.home()),
    )
    restart.write_unit(text)
