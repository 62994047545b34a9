"""The `edgeprune prune` command."""

from __future__ import annotations

from edgeprune.commands import options

HELP = "remove channels for real; with --data also choose and compensate on pictures"


def configure(parser) -> None:
    """Add the arguments and options of `edgeprune prune`."""
    options.weights(parser, required=True)
    options.budget(parser)
    options.criterion(parser)
    options.data(parser, required=False, text="as for build: its training pictures serve to choose and to compensate")
    options.imgsz(parser)
    options.target(parser, required=False)
    options.out(parser, "the pruned checkpoint (default: <weights>-pruned.pt beside it); the plan goes beside as .json")
    options.quiet(parser)


def run(args) -> None:
    """Run `edgeprune prune` with parsed arguments, and print the result."""
    from edgeprune_device.errors import InputError
    from edgeprune_device.files import check_writable

    from edgeprune.api.prune import prune

    out = args.out or args.weights.with_name(f"{args.weights.stem}-pruned.pt")
    if out.suffix != ".pt":
        raise InputError(f"--out {out}: a checkpoint ends in .pt")
    check_writable(out)
    result = prune(
        args.weights, **options.budgets(args), data=args.data, criterion=args.criterion, imgsz=args.imgsz,
        target=args.target, uniform=args.uniform, portable=args.portable, quiet=args.quiet,
    )  # fmt: skip
    result.save(out)
    result.plan.save(out.with_suffix(".json"))
    print(result)
    print(f"written            {out} and {out.with_suffix('.json')}")
