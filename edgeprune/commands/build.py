"""The `edgeprune build` command."""

from __future__ import annotations

from edgeprune.commands import options

HELP = "the whole job: prune, fine-tune, export, quantize, pack a signed bundle"


def configure(parser) -> None:
    """Add the arguments and options of `edgeprune build`."""
    options.budget(parser)
    parser.add_argument(
        "--steps", type=int, default=1, metavar="N", help="prune and fine-tune in N steps, --epochs in all (default 1)"
    )
    options.target(parser, required=True)
    options.weights(
        parser, required=False, text="your trained .pt (default: ./best.pt with ./data.yaml, else the embedded demo)"
    )
    options.data(parser, required=False)
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
        "--on", metavar="user@jetson",
        help="let this device build the TensorRT engines and measure them (see docs/deploying.md)",
    )  # fmt: skip
    parser.add_argument(
        "--allow-poor-baseline", action="store_true",
        help="build also where the original's mAP50-95 is below 0.01 (default: stop; data, classes or size are wrong)",
    )  # fmt: skip
    options.pictures(parser)
    options.out(parser, "folder for the results (default runs/<name>)")
    parser.add_argument("--name", help="name of the bundle (default: from the weights and the target)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted build of the same inputs")
    options.quiet(parser)


def run(args) -> None:
    """Run `edgeprune build` with parsed arguments, and print the result."""
    from edgeprune_device.progress import Line

    with Line() as line:
        line("loading PyTorch and Ultralytics")
        from edgeprune.api.build import build
        from edgeprune.workflow.card import show

    done = build(
        target=args.target, **options.budgets(args), weights=args.weights, data=args.data, imgsz=args.imgsz,
        criterion=args.criterion, uniform=args.uniform, portable=args.portable, steps=args.steps, epochs=args.epochs,
        batch=args.batch, lr=args.lr, distill=args.distill, patience=args.patience, qat=options.qat_epochs(args),
        device=args.device, workers=args.workers, seed=args.seed, precision=options.splitted(args.precision),
        max_drop=args.max_drop, nms=args.nms, on=args.on, name=args.name, pictures=args.pictures,
        allow_poor_baseline=args.allow_poor_baseline, out=args.out, resume=args.resume, quiet=args.quiet,
    )  # fmt: skip
    show(done.record, done.out)
