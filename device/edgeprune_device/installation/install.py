"""A bundle becomes the release in use, or everything stays as it was.

    receive   beside the releases, complete                 switch    `current` names it, in one rename
    verify    signature, hashes, key, counter               restart   the service reads `current` again
    measure   engine, a short benchmark, the accuracy gate  watch     healthy for a while, or back to the former one
    commit    under its name, with its record               confirm   good; nothing older is installed from now on
                                                            tidy      old releases and their engines are removed

After a kill or a power cut at any moment, `current` names a complete, verified release, and the same installation can
be run again and continues. Before the switch the device is unchanged. After it the service itself confirms the release,
or falls back.
"""

from __future__ import annotations

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
from edgeprune_device.errors import GateError, InputError, SignatureError
from edgeprune_device.installation import judge, measure, restart, root, tidy
from edgeprune_device.installation.options import InstallOptions, Say
from edgeprune_device.releases import BUNDLE, Release, Releases
from edgeprune_device.trust.bundle import Bundle

__all__ = ["install", "roll_back"]

_SPARE_BYTES = 32 << 20

_PATIENCE_S = 2.0  # `Releases.at_work` also holds the lock for a moment


def install(releases: Releases, source: Path, options: InstallOptions, say: Say) -> Release:
    """Install a bundle.

    Args:
        releases: The releases.
        source: The bundle: a file, or a folder of `incoming/` (see `assembly`).
        options: How to install.
        say: Called with (step, text).

    Returns:
        The release, which is then in use. Its state is "good", or still "trial" where it could not be judged yet, for
            example because a camera gives no frames.

    Raises:
        InputError: The input is wrong, there is no room, or the user lacks a right.
        SignatureError: The bundle is not intact, not trusted, or too old.
        GateError: The accuracy drop is too large, or the release was not healthy; the former release is in use.
        BlockingIOError: Another installation is at work.
    """
    root.make_root(releases.root)
    with releases.locked(_PATIENCE_S):
        if options.source is not None:
            restart.check_unit()
        restart.find(releases, options.unit)  # a service that cannot be restarted fails now, not at the end
        former = judge.current(releases)
        releases.sweep()
        if former is not None and source.name == former.bundle_sha256 and _in_use(releases, former, options):
            return _done(releases, former, source, options, say)  # killed as it tidied up: its parts may be gone
        say("receive", "the bundle")
        folder = releases.root / "releases" / f".new-{secrets.token_hex(4)}"
        try:
            root.make_folder(folder)
            bundle = _received(releases, source, folder / BUNDLE, options)
            if former is not None and bundle.sha256 == former.bundle_sha256 and _in_use(releases, former, options):
                return _done(releases, former, source, options, say)
            older = _check_counter(releases, bundle, options)
            say("verify", f"{bundle.manifest.name}, signed by {bundle.key_fingerprint}{_doubts(bundle, older)}")
            say("measure", "engine, a short benchmark, accuracy")
            measured = measure.measure(releases, bundle, folder, options)
            say("measure", measure.described(measured))
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
            release = judge.judge(releases, service, release, former, options, say)
        except GateError:
            with suppress(InputError):  # one more: the failed one, whose record has the reason
                releases.tidy(options.keep + 1)
                tidy.tidy_engines(releases)
            raise
        tidy.tidy(releases, source, options, say)
    return release


def roll_back(releases: Releases, to: Optional[str], unit: Optional[str], say: Say) -> Release:
    """Go back to another release; the former one is marked bad.

    Args:
        releases: The releases.
        to: Beginning of the release's ID; None: the newest good one that is not in use.
        unit: The systemd unit to restart; None: see `restart.find`.
        say: Called with (step, text).

    Returns:
        The release, which is then in use.

    Raises:
        InputError: There is no such release, or it is in use already.
        SignatureError: The release is damaged, or no longer trusted.
        GateError: The release is in use again, but not healthy.
        BlockingIOError: An installation is at work.
    """
    if not releases.root.is_dir():
        raise InputError(f"{releases.root}: no releases here")
    with releases.locked(_PATIENCE_S):
        service, former = restart.find(releases, unit), judge.current(releases)
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
            if former is not None and target.state == "good":  # else a trial falls back to it
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


# --- receive, verify -------------------------------------------------------------------------------------------------
def _received(releases: Releases, source: Path, target: Path, options: InstallOptions) -> Bundle:
    if source.is_dir():
        from edgeprune_device.installation import assembly

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


def _check_counter(releases: Releases, bundle: Bundle, options: InstallOptions) -> bool:
    """Whether the bundle is older than this device has confirmed, which only --allow-older permits."""
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


def _in_use(releases: Releases, former: Release, options: InstallOptions) -> bool:
    """Whether the bundle is already in use, so that nothing needs to be done."""
    if options.precision not in ("auto", former.precision) or options.runtime not in ("auto", former.runtime):
        return False
    with suppress(InputError, SignatureError):
        return former.state == "good" and options.source is None and releases.open(former).trusted == former.trusted
    return False


def _done(releases: Releases, release: Release, source: Path, options: InstallOptions, say: Say) -> Release:
    say("verify", f"{release} is in use already, and intact")
    tidy.tidy(releases, source, options, say)
    return release


# --- commit ----------------------------------------------------------------------------------------------------------
def _unpack(releases: Releases, bundle: Bundle, folder: Path, measured: measure.Measured) -> None:
    """Write the model in use as files, for other programs. The names are fixed; none comes from the bundle."""
    manifest = bundle.manifest
    entry = bundle.payloads[manifest.models[measured.precision]["payload"]]
    files.check_room(releases.root, entry.size_bytes + _SPARE_BYTES)
    files.write_atomic(folder / "model.onnx", bundle.read(entry.name), mode=0o644)
    files.write_atomic(folder / "labels.txt", "".join(f"{name}\n" for name in manifest.classes), mode=0o644)
    files.write_atomic(folder / "manifest.json", strict_json.pretty(manifest.to_json()), mode=0o644)
    if measured.runtime in ("trt", "rtx"):
        built = json.loads(
            measure.run_tool(releases, ["engine", str(bundle.path), "--precision", measured.precision, "--json",
                                 *measure.untrusted_option(bundle)])
        )  # fmt: skip
        if built[0]["path"]:
            plan = Path(built[0]["path"]).read_bytes()
            files.write_atomic(folder / "model.plan", plan, mode=0o644)


def _committed(
    releases: Releases, bundle: Bundle, folder: Path, measured: measure.Measured, older: bool, say: Say
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


def _write_unit(releases: Releases, options: InstallOptions) -> None:
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
