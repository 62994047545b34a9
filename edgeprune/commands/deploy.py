"""The `edgeprune deploy` command."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeprune_device.option import Flag, Option, named
from edgeprune_device.options import ALLOW_OLDER, JSON, PRECISION

from edgeprune.commands import deployment

_MORE = (
    PRECISION.but(help="model of the bundle: {names}; auto: the best that the drone can run"),
    ALLOW_OLDER,
    Option("dry_run", Flag(), "print each step without sending or changing anything", default=False),
)
#: The kinds of destination to which an option applies; other options apply to all.
_ONLY = {
    "unit": ("drone",), "health": ("drone",), "limit": ("drone",), "max_drop": ("drone",), "partition": ("image",),
    "no_agent": ("image", "folder"),
}  # fmt: skip

HELP = "deploy a bundle to drones, to a root file system or into a disk image"


def configure(parser: ArgumentParser) -> None:
    """Add the arguments and options of `edgeprune deploy`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="an .epb file that `edgeprune build` wrote")
    parser.add_argument(
        "destinations", metavar="DEST", nargs="+",
        help="user@drone[:port][:/folder] (default folder /opt/edgeprune), a root file system's folder, or a disk "
        "image; several destinations are processed in order until one fails",
    )  # fmt: skip
    for option in (*deployment.ANY, *deployment.DRONE, *deployment.IMAGE, *_MORE, deployment.retries(), JSON):
        option.add(parser)


def run(args: Namespace) -> None:
    """Run `edgeprune deploy` with parsed arguments, and print the result."""
    import sys

    from edgeprune_device import strict_json
    from edgeprune_device.errors import InputError
    from edgeprune_device.trust.bundle import Bundle

    from edgeprune.drones.deploy import image, live, rootfs

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def kind(text: str) -> tuple[str, Callable[[], Any]]:
        """Return (kind of the destination, its deployment).

        All destinations are checked before the first is changed.
        """
        path = Path(text)
        if path.is_dir():
            return "folder", lambda: rootfs.deploy(bundle, path, settings, say)
        if path.exists():  # includes the device of an SD card, which image.deploy refuses with advice
            return "image", lambda: image.deploy(bundle, path, settings, say)
        if text.startswith((".", "/", "~")):
            raise InputError(f"{text}: no such folder or image; give user@drone for a drone")
        where = live.where(text, settings.root)
        return "drone", lambda: live.deploy(bundle, where, settings, say, retries=args.retries)

    settings = deployment.settings(args)
    kinds = {text: kind(text) for text in args.destinations}
    if len(kinds) < len(args.destinations):
        raise InputError("DEST: duplicate destination; give each destination once")
    _check_options(args, {name for name, _ in kinds.values()})
    jobs = [(text, job) for text, (_, job) in kinds.items()]
    bundle = Bundle.open(args.bundle, allow_untrusted=args.allow_untrusted)
    model = bundle.manifest.models.get(settings.precision)
    if settings.precision != "auto" and (model is None or model["payload"] is None):
        raise InputError(
            f"{bundle.path}: no {settings.precision} model in this bundle; give another {named('precision')}, or auto"
        )
    if not bundle.trusted:
        say(f"warning: {bundle.path}: signed by {bundle.key_fingerprint}, which is NOT trusted here")
    done = {}
    try:
        for text, job in jobs:
            done[text] = job()
            if not args.dry_run:
                say(f"{text}: done")
    finally:
        left = [text for text, _ in jobs if text not in done]
        if left and len(jobs) > 1:
            say(f"done: {', '.join(done) or 'none'}; failed: {left[0]}; not tried: {', '.join(left[1:]) or 'none'}")
        if args.json:
            outcome = {"bundle_sha256": bundle.sha256, "dry_run": args.dry_run, "done": done, "failed": left[:1],
                       "not_tried": left[1:]}  # fmt: skip
            print(strict_json.pretty(outcome), end="")


def _check_options(args: Namespace, kinds: set[str]) -> None:
    """Refuse an option that applies to none of the destinations."""
    from edgeprune_device.errors import InputError

    for name, known in _ONLY.items():
        if getattr(args, name) not in (None, False) and not kinds & set(known):
            raise InputError(
                f"{named(name)}: applies only to destinations of type {' or '.join(known)} (found "
                f"{', '.join(args.destinations)}); leave it out"
            )
