"""The `edgeprune finetune` command."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from edgeprune.options import DATA, TEACHER, WEIGHTS, FinetuneOptions, add, given

HELP = "train a checkpoint further and keep its architecture"


def configure(parser: ArgumentParser) -> None:
    """Add the options of `edgeprune finetune`."""
    WEIGHTS.add(parser)
    DATA.but(required=True).add(parser)
    TEACHER.add(parser)
    default = " (default: <weights>-tuned.pt beside the weights, with --qat <weights>-qat.pt)"
    add(parser, FinetuneOptions, out=default)


def run(args: Namespace) -> None:
    """Run `edgeprune finetune` with parsed arguments, and print the result."""
    from edgeprune.api.finetune import finetune

    options = given(args, FinetuneOptions)
    options["out"] = args.out or args.weights.with_name(f"{args.weights.stem}-{'qat' if args.qat else 'tuned'}.pt")
    print(finetune(args.weights, args.data, distill=args.distill, **options))
    print(f"written {options['out']}")
