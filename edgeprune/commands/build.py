"""edgeprune build"""

from __future__ import annotations

import re
from pathlib import Path

from edgeprune.commands import options

#: Scenes to fine-tune on and to validate on: less than ten minutes on two cores, more than 4,000 boxes to judge by.
DEMO_SCENES = (200, 400)
HELP = "the whole job: prune, fine-tune, export, quantize, pack a signed bundle"


def configure(parser) -> None:
    options.budget(parser)
    parser.add_argument(
        "--steps", type=int, default=1, metavar="N", help="prune and fine-tune in N steps, --epochs in all (default 1)"
    )
    options.target(parser, required=True)
    options.weights(
        parser, required=False, text="your trained .pt (default: ./best.pt with ./data.yaml, else the embedded demo)"
    )
    options.data(parser, required=False, text="your data.yaml, with train: and val:")
    options.imgsz(parser)
    options.criterion(parser)
    options.training(parser)
    parser.add_argument("--distill", action="store_true", help="fine-tune with the original as the teacher as well")
    options.qat(
        parser,
        "then train N epochs more (2 if no number is given) at a tenth of --lr with weights and activations rounded as "
        "the INT8 file rounds them; signed INT8 only, so not for target cpu",
    )
    options.precision(parser)
    options.nms(parser)
    parser.add_argument(
        "--on", metavar="user@jetson", help="let this device build the TensorRT engines and measure them (see README)"
    )
    options.out(parser, "folder for the results (default runs/<name>)")
    parser.add_argument("--name", help="name of the bundle (default: from the weights and the target)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted build of the same inputs")
    options.quiet(parser)


def run(args) -> None:
    from edgeprune_device.errors import Interrupted

    from edgeprune import checkpoint
    from edgeprune.card import card
    from edgeprune.progress import Reporter
    from edgeprune.workflow import Options, build

    reporter = Reporter(quiet=args.quiet)
    _check_cheap(args)
    weights, data, name = _inputs(args, reporter)
    budget = options.asked(args)
    short = f"{budget.value:g}" if budget.kind == "ratio" else f"{budget.kind}{budget.value:g}"
    name = args.name or f"{name}-{Path(args.target).stem}-{short}".replace(".", "p")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"
    out = args.out or _folder(name, resume=args.resume)
    chosen = Options(
        weights=weights.resolve(),
        data=data.resolve(),
        target=args.target,
        budget=budget,
        uniform=args.uniform,
        portable=args.portable,
        steps=args.steps,
        criterion=args.criterion,
        imgsz=checkpoint.load(weights).input_size(args.imgsz),
        epochs=args.epochs,
        batch=args.batch,
        lr=args.lr,
        distill=args.distill,
        patience=args.patience,
        device=args.device,
        workers=args.workers,
        seed=args.seed,
        precision=options.splitted(args.precision),
        max_drop=args.max_drop,
        nms=args.nms,
        name=name,
        qat=options.qat_epochs(args),
        on=args.on,
    )
    try:
        record = build(chosen, out, reporter, resume=args.resume)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; the same command with --out {out} --resume goes on") from None
    print(card(record, out))


def _check_cheap(args) -> None:
    """A mistyped option is told before the demo's pictures are drawn or anything is read."""
    from edgeprune_device.target import Target

    from edgeprune import ssh

    Target.load(args.target)
    options.asked(args)
    options.qat_epochs(args)
    if args.on is not None:
        ssh.parse(args.on)


def _inputs(args, reporter) -> tuple[Path, Path, str]:
    from edgeprune_device.errors import InputError

    if args.weights is None and args.data is None:
        if Path("best.pt").is_file() and Path("data.yaml").is_file():
            reporter.say("using ./best.pt and ./data.yaml")
            return Path("best.pt"), Path("data.yaml"), "best"
        from edgeprune import demo

        reporter.say(
            "no best.pt and data.yaml here: using the embedded demo detector and its generated scenes.\n"
            "For your own model: edgeprune build --weights best.pt --data data.yaml --ratio … --target …"
        )
        return demo.WEIGHTS, demo.write_dataset(_cache() / "demo", *DEMO_SCENES), "demo"
    for given, missing in ((args.weights, "--data data.yaml"), (args.data, "--weights best.pt")):
        if given is not None and (args.data if given is args.weights else args.weights) is None:
            raise InputError(f"{missing} is missing: a model is pruned on pictures of its own task")
    return args.weights, args.data, args.weights.stem


def _cache() -> Path:
    import os

    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeprune"


def _folder(name: str, *, resume: bool) -> Path:
    """runs/<name>, then runs/<name>-2, …: the first that is free, or with --resume the last that is not."""
    base = Path("runs") / name
    taken = [p for p in (base, *(base.with_name(f"{name}-{i}") for i in range(2, 1000))) if (p / "build.json").exists()]
    if resume:
        return taken[-1] if taken else base
    if not (base / "build.json").exists():
        return base
    return next(p for i in range(2, 1000) if not ((p := base.with_name(f"{name}-{i}")) / "build.json").exists())
