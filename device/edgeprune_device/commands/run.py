"""The command `edgeprune run`."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from edgeprune_device.commands import add
from edgeprune_device.option import Number, Option, named
from edgeprune_device.options import (
    ALLOW_UNTRUSTED,
    CONF,
    CUDA,
    MAX_MEGAPIXELS,
    OUTPUT,
    PRECISION,
    RELEASES,
    ROOT,
    RUNTIME,
    SERVICE_LIMIT,
    SOURCE,
    THREADS,
)

OPTIONS = (
    RELEASES.but(help=f"folder of the releases (default {ROOT})", default=None),
    SOURCE.but(help="source of the frames: a folder or image, a video (played once), /dev/video0, csi, a GStreamer "
               "pipeline, or bundle (the bundle's evaluation images)"),
    OUTPUT,
    PRECISION.but(help="model of the bundle: {names}; auto: the one with which the release was accepted, else the "
                  "best for the runtime"),
    RUNTIME.but(help="inference runtime: {names}; auto: the best, or on a CPU the fastest in a short measurement; "
                "null: no inference, for tests"),
    CUDA,
    CONF,
    THREADS,
    Option("watchdog", Number(1), "time without progress after which the worker is restarted, s", default=20.0,
           metavar="S"),
    Option("window", Number(0, ends="(]"), "time that a release on trial must stay healthy to be confirmed, s",
           default=30.0, metavar="S"),
    SERVICE_LIMIT,
    MAX_MEGAPIXELS,
    ALLOW_UNTRUSTED.but(help="with BUNDLE: accept an untrusted key"),
)  # fmt: skip
HELP = "run the service: read frames, write detections as lines of JSON, restart and roll back on failure"


def configure(parser: ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "bundle", metavar="BUNDLE", nargs="?", type=Path, help="the bundle to run (default: the release below --root)"
    )
    add(parser, OPTIONS)


def run(args: Namespace) -> int:
    """Check the arguments, then run the service. This process imports no numpy."""
    from edgeprune_device.errors import InputError
    from edgeprune_device.service import supervisor
    from edgeprune_device.trust.bundle import Bundle

    names = ("source", "output", "precision", "runtime", "cuda", "conf", "threads", "max_megapixels")
    asked = {name: getattr(args, name) for name in names}
    asked.update(watchdog_s=args.watchdog, window_s=args.window, limit_s=args.limit)
    if args.bundle is not None:
        if args.root is not None:
            raise InputError(f"BUNDLE and {named('root')}: cannot be combined; give a bundle or a folder of releases")
        bundle = Bundle.open(args.bundle, allow_untrusted=args.allow_untrusted)
        asked.update(bundle=args.bundle, identity=bundle.sha256[:16], allow_untrusted=args.allow_untrusted)
    else:
        root = args.root or ROOT
        if args.allow_untrusted:
            raise InputError(
                f"{named('allow_untrusted', True)}: applies only to BUNDLE; a release keeps the setting of its "
                "installation"
            )
        if not root.is_dir():
            raise InputError(
                f"{root}: no such folder; create the folder with edgeprune deploy, or give BUNDLE or {named('root')}"
            )
        asked.update(root=root)
        os.environ.setdefault("EDGEPRUNE_ENGINES", str(root.absolute() / "engines"))
    return supervisor.run(supervisor.ServiceOptions(**asked))
