"""The `edgeprune prune` command."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from edgeprune.options import PRUNED, WEIGHTS, PruneOptions, add, given

HELP = "remove channels; with --data, rank the channels and compensate for the removed ones on images"


def configure(parser: ArgumentParser) -> None:
    """Add the options of `edgeprune prune`."""
    WEIGHTS.add(parser)
    add(parser, PruneOptions)
    PRUNED.add(parser)


def run(args: Namespace) -> None:
    """Run `edgeprune prune` with parsed arguments, and print the result."""
    from edgeprune_device.files import check_writable

    from edgeprune.api.prune import prune

    out: Path = args.out or args.weights.with_name(f"{args.weights.stem}-pruned.pt")
    check_writable(out)
    result = prune(args.weights, **given(args, PruneOptions))
    result.save(out)
    result.plan.save(out.with_suffix(".json"))
    print(result)
    print(f"written            {out} and {out.with_suffix('.json')}")
