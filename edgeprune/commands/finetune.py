"""The `edgeprune finetune` command."""

from __future__ import annotations

from pathlib import Path

from edgeprune.commands import options

HELP = "train a checkpoint further with its architecture kept"


def configure(parser) -> None:
    """Add the arguments and options of `edgeprune finetune`."""
    options.weights(parser, required=True)
    options.data(parser, required=True)
    options.imgsz(parser)
    options.training(parser)
    parser.add_argument(
        "--distill", type=Path, metavar="FILE", help="learn from this checkpoint's answers too: the unpruned original"
    )
    parser.add_argument(
        "--sparsity",
        type=float,
        default=0.0,
        metavar="X",
        help="Network Slimming, before pruning: each step takes X from every prunable batch-norm scale (times the "
        "learning rate's place in its schedule); at most --lr (default 0)",
    )
    options.qat(
        parser,
        "instead train N epochs (2 if no number is given) at a tenth of --lr with weights and activations rounded as "
        "the signed INT8 file rounds them; `edgeprune export` then writes it with the same scales",
    )
    options.out(parser, "the tuned checkpoint (default: <weights>-tuned.pt beside it, with --qat <weights>-qat.pt)")
    options.quiet(parser)


def run(args) -> None:
    """Run `edgeprune finetune` with parsed arguments, and print the result."""
    from edgeprune.api.finetune import finetune

    rounding = options.qat_epochs(args)
    out = args.out or args.weights.with_name(f"{args.weights.stem}-{'qat' if rounding else 'tuned'}.pt")
    result = finetune(
        args.weights, args.data, epochs=args.epochs, batch=args.batch, lr=args.lr, imgsz=args.imgsz, device=args.device,
        workers=args.workers, seed=args.seed, patience=args.patience, distill=args.distill, sparsity=args.sparsity,
        qat=rounding, out=out, quiet=args.quiet,
    )  # fmt: skip
    print(result)
    print(f"written {out}")
