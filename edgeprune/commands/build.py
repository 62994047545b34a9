"""The `edgeprune build` command."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from edgeprune.options import BuildOptions, add, given

HELP = "run the whole job: prune, fine-tune, export, quantize, pack a signed bundle"


def configure(parser: ArgumentParser) -> None:
    """Add the options of `edgeprune build`."""
    add(parser, BuildOptions)


def run(args: Namespace) -> None:
    """Run `edgeprune build` with parsed arguments, and print the result."""
    from edgeprune_device.progress import Line

    with Line() as line:
        line("loading PyTorch and Ultralytics")
        from edgeprune.api.build import build
        from edgeprune.workflow.card import show

    done = build(**given(args, BuildOptions))
    show(done.record, done.out)
