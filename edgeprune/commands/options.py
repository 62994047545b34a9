"""Options that several commands share; each is declared once, here.

A function with the name of an option adds it to a parser.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def weights(parser: argparse.ArgumentParser, *, required: bool, text: str = "an Ultralytics checkpoint (.pt)") -> None:
    """Add --weights."""
    parser.add_argument("--weights", type=Path, required=required, metavar="FILE", help=text)


#: The forms of a data set that --data accepts.
_DATA = "data.yaml, its folder, COCO's JSON or its folder, a .zip, or a name of Ultralytics' (coco8)"


def data(parser: argparse.ArgumentParser, *, required: bool, text: str = _DATA) -> None:
    """Add --data."""
    parser.add_argument("--data", type=Path, required=required, metavar="FILE", help=text)


def imgsz(parser: argparse.ArgumentParser) -> None:
    """Add --imgsz."""
    parser.add_argument(
        "--imgsz", type=int, metavar="N", help="network input, pixels (default: what the weights were trained at)"
    )


def budget(parser: argparse.ArgumentParser) -> None:
    """Add --uniform, --portable, and the budget: --ratio, --macs, --params, --latency-ratio or --latency-ms."""
    group = parser.add_mutually_exclusive_group(required=True)
    add = group.add_argument
    add("--ratio", type=float, metavar="R", help="fraction of the prunable channels to remove, in [0, 1)")
    add("--macs", type=float, metavar="F", help="fraction of the multiply-accumulates to keep, in (0, 1]")
    add("--params", type=float, metavar="F", help="fraction of the parameters to keep, in (0, 1]")
    add("--latency-ratio", type=float, metavar="F", help="fraction of the latency to keep (measured on this machine)")
    add("--latency-ms", type=float, metavar="MS", help="milliseconds a picture may take (measured on this machine)")
    parser.add_argument(
        "--uniform", action="store_true", help="the same share of every layer (default: where it costs least)"
    )
    parser.add_argument(
        "--portable", action="store_true", help="only widths that Ultralytics' YAML can say: stock train() keeps them"
    )


def asked(args):
    """The Budget of the parsed arguments; a limit in milliseconds stays one until the latency has been measured.

    Raises:
        InputError: a value is outside its range.
    """
    from edgeprune.pruning.budget import Budget

    return Budget.asked(**budgets(args))


def budgets(args) -> dict[str, float | None]:
    """The options of the budget as keyword arguments of the Python API."""
    names = ("ratio", "macs", "params", "latency_ratio", "latency_ms")
    return {name: getattr(args, name) for name in names}


def criterion(parser: argparse.ArgumentParser) -> None:
    """Add --criterion."""
    parser.add_argument(
        "--criterion",
        default="auto",
        metavar="NAME",
        help="who chooses: energy, bn_scale (Network Slimming), l1, l2, lamp, taylor, percentile, random, "
        "module:function, or auto = energy where there are pictures, else bn_scale (default)",
    )


def target(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add --target."""
    parser.add_argument(
        "--target",
        required=required,
        default=None if required else "jetson-orin",
        metavar="NAME",
        help="the device, see `edgeprune targets`" + ("" if required else " (default jetson-orin)"),
    )


def training(parser: argparse.ArgumentParser) -> None:
    """Add the options of fine-tuning: --epochs, --batch, --lr, --device, --workers, --seed and --patience."""
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="fine-tuning epochs (default 10)")
    parser.add_argument(
        "--batch", type=int, default=4, metavar="N", help="pictures a step (default 4; halved when memory runs out)"
    )
    parser.add_argument(
        "--lr", type=float, default=1e-4, help="learning rate: AdamW, 100 steps of warm-up, cosine (default 1e-4)"
    )
    parser.add_argument(
        "--device",
        default="cpu",
        help="cpu, a GPU number, or several: 0,1 (by Ultralytics' DDP; not verified on real GPUs) (default cpu)",
    )
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="data loading processes (default 0: never crashes)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default 0)")
    parser.add_argument(
        "--patience",
        type=int,
        default=0,
        metavar="N",
        help="stop after N epochs without a better figure on a tenth of the training pictures, which is held back, and "
        "keep the best epoch (default 0: all epochs, all pictures)",
    )


def qat(parser: argparse.ArgumentParser, text: str) -> None:
    """Add --qat, which takes a number of epochs, or stands for 2."""
    parser.add_argument("--qat", type=int, nargs="?", const=2, metavar="N", help=text)


def qat_epochs(args) -> int:
    """The number of epochs of --qat; 0 without the option.

    Raises:
        InputError: the number is below 1.
    """
    from edgeprune_device.errors import InputError

    if args.qat is not None and args.qat < 1:
        raise InputError(f"--qat {args.qat}: give 1 epoch or more, or leave it out")
    return args.qat or 0


def precision(parser: argparse.ArgumentParser) -> None:
    """Add --precision and --max-drop."""
    parser.add_argument(
        "--precision", default="fp32,fp16,int8", metavar="LIST", help="models to make (default fp32,fp16,int8)"
    )
    parser.add_argument(
        "--max-drop",
        type=float,
        default=0.003,
        metavar="X",
        help="absolute mAP50-95 that a precision may lose against FP32 before the job fails (default 0.003)",
    )


def nms(parser: argparse.ArgumentParser) -> None:
    """Add --nms."""
    parser.add_argument(
        "--nms",
        action="store_true",
        help="NMS inside the ONNX files: (1, 300, 6) rows of box, score, class. One class per box, so mAP, which "
        "counts its other classes too, is lower. Not for YOLOv10 and 26, whose heads need none (default: outside)",
    )


def pictures(parser: argparse.ArgumentParser) -> None:
    """Add --pictures."""
    parser.add_argument(
        "--pictures", type=int, default=12, metavar="N",
        help="pictures in the page's gallery, the worst losses first; they are in the file, 0: none (default 12)",
    )  # fmt: skip


def out(parser: argparse.ArgumentParser, text: str) -> None:
    """Add --out."""
    parser.add_argument("--out", type=Path, metavar="PATH", help=text)


def drone(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument for a drone."""
    parser.add_argument("target", metavar="user@drone", help="as ssh takes it: [user@]host[:port] or an alias")


def retries(parser: argparse.ArgumentParser) -> None:
    """Add --retries."""
    from edgeprune.drones.ssh import RETRIES

    text = f"how often to try again in a row while the link moves nothing (default {RETRIES})"
    parser.add_argument("--retries", type=_count, default=RETRIES, metavar="N", help=text)


def deployment(parser: argparse.ArgumentParser) -> None:
    """Add the options of a deployment to any destination; `settings` reads them."""
    add = parser.add_argument
    add("--root", default="/opt/edgeprune", metavar="FOLDER", help="of the releases there (default /opt/edgeprune)")
    add("--keep", type=_count, default=3, metavar="N", help="releases to keep, this one included (default 3, least 2)")
    add("--source", help="write edgeprune.service there, which runs it on this camera, video or folder")
    add("--output", help="where its detections go: -, a file or unix:PATH (default -, the journal)")
    add("--no-agent", action="store_true", help="leave the agent of an image as it is, also where there is none")
    add("--allow-untrusted", action="store_true", help="also an intact bundle whose key is not trusted")


def settings(args):
    """The DeploySettings of the parsed arguments; an option that the command lacks has its default.

    Raises:
        InputError: a value is outside its range, or two options exclude each other.
    """
    from pathlib import PurePosixPath

    from edgeprune_device.errors import InputError

    from edgeprune.drones.deploy import DeploySettings

    root = PurePosixPath(args.root)
    if not root.is_absolute() or ".." in root.parts or len(root.parts) < 2 or not args.root.isprintable():
        raise InputError(f"--root {args.root!r}: must be an absolute folder below /, without ..")
    if args.keep < 2:
        raise InputError(f"--keep {args.keep}: leaves nothing to go back to; keep 2 or more")
    if args.output is not None and args.source is None:
        raise InputError("--output belongs to the unit that --source writes: give both, or neither")
    given = vars(args)
    if args.source is not None and given.get("unit") is not None:
        raise InputError("--source writes edgeprune.service, --unit names another: give one of the two")
    for name, unit in (("health", " s"), ("max_drop", "")):
        value = given.get(name)
        if value is not None and not 0 < value < 1e6:
            raise InputError(f"--{name.replace('_', '-')} {value:g}{unit}: must be above 0")
    return DeploySettings(
        root=root,
        keep=args.keep,
        unit=given.get("unit"),
        source=args.source,
        output=args.output,
        health_s=given.get("health"),
        max_drop=given.get("max_drop"),
        precision=given.get("precision", "auto"),
        allow_untrusted=args.allow_untrusted,
        allow_older=given.get("allow_older", False),
        dry_run=given.get("dry_run", False),
        agent=not args.no_agent,
        partition=given.get("partition"),
    )


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 6:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, not {text!r}")
    return int(text)


def quiet(parser: argparse.ArgumentParser) -> None:
    """Add --quiet."""
    parser.add_argument("--quiet", action="store_true", help="no progress; warnings and results only")


def splitted(text: str) -> tuple[str, ...]:
    """Split a list at its commas; empty parts are left out."""
    return tuple(p for p in (part.strip() for part in text.split(",")) if p)
