"""The command `edgeprune run`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from edgeprune_device.commands import positive_float, positive_int

HELP = "the service: frames -> detections as lines of JSON, watched, with the former release to fall back to"


def configure(parser) -> None:
    """Add the options."""
    parser.add_argument(
        "bundle", metavar="BUNDLE", nargs="?", type=Path, help="run this one; default: the release in use below --root"
    )
    parser.add_argument("--root", metavar="FOLDER", type=Path, help="where the releases are; default /opt/edgeprune")
    parser.add_argument(
        "--source",
        default="bundle",
        help="a folder or picture, a video (read once), /dev/video0, csi, a GStreamer pipeline; default bundle, its "
        "evaluation pictures",
    )
    parser.add_argument(
        "--output",
        default="-",
        help="where the lines go: - (standard output), a file (appended to), unix:PATH (a socket); default -",
    )
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "fp16", "int8", "int8-fp16"),
        help="which model of the bundle; auto: what the release was accepted with, else the best for the runtime",
    )
    parser.add_argument(
        "--runtime", default="auto", help="auto, trt, rtx, ort, ort-cuda, ort-tensorrt, null; default auto"
    )
    parser.add_argument("--cuda", default="auto", help="what handles the GPU's memory; default: the first that works")
    parser.add_argument("--conf", type=_confidence, help="least score of a detection; default: the bundle's")
    parser.add_argument("--threads", type=positive_int, help="CPU threads for inference; default: the runtime's choice")
    parser.add_argument(
        "--watchdog",
        metavar="S",
        type=_seconds,
        default=20.0,
        help="a worker that is silent for so long is killed and started again; default 20",
    )
    parser.add_argument(
        "--window",
        metavar="S",
        type=positive_float,
        default=30.0,
        help="a release on trial that runs well for so long is confirmed; default 30",
    )
    parser.add_argument("--allow-untrusted", action="store_true", help="with BUNDLE: accept an untrusted key")


def run(args) -> int:
    """Check the arguments, then run the service. It imports no numpy."""
    from edgeprune_device.errors import InputError
    from edgeprune_device.releases import DEFAULT_ROOT
    from edgeprune_device.service import supervisor
    from edgeprune_device.trust.bundle import Bundle

    if not args.source:
        raise InputError("--source is empty; give a folder, a video, a camera, or bundle")
    names = ("source", "output", "precision", "runtime", "cuda", "conf", "threads")
    asked = {name: getattr(args, name) for name in names}
    asked.update(watchdog_s=args.watchdog, window_s=args.window)
    if args.bundle is not None:
        if args.root is not None:
            raise InputError("give BUNDLE or --root, not both: a bundle is run as it is, releases are looked after")
        bundle = Bundle.open(args.bundle, allow_untrusted=args.allow_untrusted)
        asked.update(bundle=args.bundle, identity=bundle.sha256[:16], allow_untrusted=args.allow_untrusted)
    else:
        root = args.root or DEFAULT_ROOT
        if args.allow_untrusted:
            raise InputError("--allow-untrusted goes with BUNDLE; a release says itself whether it was let in so")
        if not root.is_dir():
            raise InputError(f"{root}: no such folder of releases; edgeprune deploy makes it, or give BUNDLE or --root")
        asked.update(root=root)
        os.environ.setdefault("EDGEPRUNE_ENGINES", str(root.absolute() / "engines"))
    return supervisor.run(supervisor.ServiceOptions(**asked))


def _confidence(text: str) -> float:
    value = positive_float(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, not {text!r}")
    return value


def _seconds(text: str) -> float:
    value = positive_float(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text!r}: a slow frame is no hang")
    return value
