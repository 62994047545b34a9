"""The command `edgeprune install`."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeprune_device.commands import add_root, find_bundle, positive_float, positive_int

HELP = "install a bundle on this device as a release: verified, measured, watched, rolled back if it fails"


def configure(parser) -> None:
    """Add the options."""
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", type=Path, help="default: the only *.epb here")
    parser.add_argument("--incoming", metavar="SHA256", help="instead: what edgeprune deploy has sent")
    add_root(parser)
    add_options(parser)
    parser.add_argument("--ticket", metavar="TEXT", help="name this installation: asked again, it is not done twice")
    parser.add_argument("--json", action="store_true", help="one JSON object a step, the result at last")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe how to install, see `InstallOptions`."""
    from edgeprune_device.installation.options import HEALTH_S, KEEP, MAX_DROP

    add = parser.add_argument
    add("--precision", default="auto", choices=("auto", "fp32", "fp16", "int8", "int8-fp16"), help="default: the best")
    add("--runtime", default="auto", help="auto, trt, rtx, ort, ort-cuda, ort-tensorrt; default auto")
    add("--max-drop", type=positive_float, default=MAX_DROP, metavar="X",
        help=f"mAP50-95 it may lose here against the host's figure (default {MAX_DROP:g})")  # fmt: skip
    add("--keep", type=positive_int, default=KEEP, metavar="N",
        help=f"releases to keep, this one included, at least 2 (default {KEEP})")  # fmt: skip
    add("--health", type=positive_float, default=HEALTH_S, metavar="S",
        help=f"how long it must run well before it is good, s (default {HEALTH_S:g})")  # fmt: skip
    add("--unit", metavar="NAME", help="the systemd unit to restart (default: edgeprune run, where it runs)")
    add("--source", help="write edgeprune.service, which runs it on this camera, video or folder")
    add("--output", help="where its detections go: -, a file, or unix:PATH (default -, the journal)")
    add("--allow-untrusted", action="store_true", help="accept an intact bundle of a key that is not trusted here")
    add("--allow-older", action="store_true", help="accept a bundle that is older than what was installed")


def run(args) -> None:
    """Start the installation in a separate process, and follow it."""
    import re

    from edgeprune_device import printable
    from edgeprune_device.errors import InputError
    from edgeprune_device.hint import no_such_file
    from edgeprune_device.installation import detached, install, root
    from edgeprune_device.installation.options import InstallOptions
    from edgeprune_device.releases import Releases

    if args.keep < 2:
        raise InputError("--keep 1: leaves nothing to go back to; keep 2 or more")
    if args.output is not None and args.source is None:
        raise InputError("--output belongs to the unit that --source writes: give both, or neither")
    if args.source is not None and args.unit is not None:
        raise InputError("--source writes edgeprune.service, --unit names another: give one of the two")
    if args.incoming is not None and args.bundle is not None:
        raise InputError("give a bundle or --incoming, not both")
    if args.incoming is not None and not re.fullmatch("[0-9a-f]{64}", args.incoming):
        raise InputError(f"--incoming {printable.printable(args.incoming[:80])}: not a SHA-256")
    if args.ticket is not None and not re.fullmatch("[0-9A-Za-z]{8,64}", args.ticket):
        raise InputError("--ticket: 8 to 64 letters and digits")
    releases = Releases(args.root)
    options = InstallOptions(
        precision=args.precision,
        runtime=args.runtime,
        max_drop=args.max_drop,
        keep=args.keep,
        health_s=args.health,
        unit=args.unit,
        source=args.source,
        output=args.output,
        allow_untrusted=args.allow_untrusted,
        allow_older=args.allow_older,
    )
    if args.incoming is not None:
        source = releases.root / "incoming" / args.incoming
    else:
        source = Path(find_bundle(args.bundle)).absolute()
        if not source.is_file():
            raise InputError(no_such_file(source))
    root.make_root(releases.root)
    return detached.run(
        releases,
        lambda say: install.install(releases, source, options, say),
        request=[str(source), *map(str, vars(options).values())],
        ticket=args.ticket,
        as_json=args.json,
    )
