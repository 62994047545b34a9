"""The `edgeprune deploy` command."""

from __future__ import annotations

from pathlib import Path

from edgeprune.commands import options

#: The kinds of destination to which an option applies; other options apply to all.
_ONLY = {
    "unit": ("drone",), "health": ("drone",), "max_drop": ("drone",), "partition": ("image",),
    "no_agent": ("image", "folder"),
}  # fmt: skip

HELP = "deploy a bundle: onto live drones, into a root file system, into a disk image"


def configure(parser) -> None:
    """Add the arguments and options of `edgeprune deploy`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="an .epb file that `edgeprune build` wrote")
    parser.add_argument(
        "destinations", metavar="DEST", nargs="+",
        help="user@drone[:port][:/folder] (default folder /opt/edgeprune), a root file system's folder, or a disk "
        "image; several go one after another, and the first that fails ends it",
    )  # fmt: skip
    options.deployment(parser)
    parser.add_argument("--unit", metavar="NAME", help="on a drone: the systemd unit to restart")
    parser.add_argument("--health", type=float, metavar="S", help="on a drone: how long it must run well, s")
    parser.add_argument(
        "--max-drop", type=float, metavar="X", help="on a drone: absolute mAP50-95 that it may lose against the host"
    )
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "fp32", "fp16", "int8", "int8-fp16"),
        help="default: the best that the drone can run",
    )  # fmt: skip
    parser.add_argument(
        "--allow-older", action="store_true", help="also a bundle that is older than what was in use there"
    )
    parser.add_argument("--partition", metavar="NAME", help="of a disk image (default: APP, else the only ext4)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent and done; change nothing")
    options.retries(parser)
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(args) -> None:
    """Run `edgeprune deploy` with parsed arguments, and print the result."""
    import sys

    from edgeprune_device import strict_json
    from edgeprune_device.errors import InputError
    from edgeprune_device.trust.bundle import Bundle

    from edgeprune.drones.deploy import image, live, rootfs

    def say(text):
        print(text, file=sys.stderr, flush=True)

    def kind(text):
        """Return (kind of the destination, its deployment).

        All destinations are checked before the first is changed.
        """
        path = Path(text)
        if path.is_dir():
            return "folder", lambda: rootfs.deploy(bundle, path, settings, say)
        if path.exists():  # also a card's device, which is refused with advice
            return "image", lambda: image.deploy(bundle, path, settings, say)
        if text.startswith((".", "/", "~")):
            raise InputError(f"{text}: no such folder or image")
        where = live.where(text, settings.root)
        return "drone", lambda: live.deploy(bundle, where, settings, say, retries=args.retries)

    settings = options.settings(args)
    kinds = {text: kind(text) for text in args.destinations}
    if len(kinds) < len(args.destinations):
        raise InputError("one destination stands there twice: give each once")
    _check_options(args, {name for name, _ in kinds.values()})
    jobs = [(text, job) for text, (_, job) in kinds.items()]
    bundle = Bundle.open(args.bundle, allow_untrusted=args.allow_untrusted)
    model = bundle.manifest.models.get(settings.precision)
    if settings.precision != "auto" and (model is None or model["payload"] is None):
        raise InputError(f"{bundle.path}: has no {settings.precision} model")
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
            found = {"bundle_sha256": bundle.sha256, "dry_run": args.dry_run, "done": done, "failed": left[:1],
                     "not_tried": left[1:]}  # fmt: skip
            print(strict_json.pretty(found), end="")


def _check_options(args, kinds: set[str]) -> None:
    """Refuse an option that applies to none of the destinations."""
    from edgeprune_device.errors import InputError

    for name, known in _ONLY.items():
        if getattr(args, name) not in (None, False) and not kinds & set(known):
            option, only = f"--{name.replace('_', '-')}", " or ".join(known)
            raise InputError(f"{option} is for a {only}, and {', '.join(args.destinations)} is none: leave it out")
