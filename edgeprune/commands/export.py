"""The `edgeprune export` command."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from edgeprune.options import DATA, WEIGHTS, ExportOptions, add, given

HELP = (
    "write a simplified ONNX file with a fixed input shape, equivalent to the network; with --data, also FP16 and INT8"
)


def configure(parser: ArgumentParser) -> None:
    """Add the options of `edgeprune export`."""
    WEIGHTS.add(parser)
    DATA.but(help=f"{DATA.help}; needed for parity on real images, FP16 and INT8").add(parser)
    add(parser, ExportOptions)


def run(args: Namespace) -> None:
    """Run `edgeprune export` with parsed arguments, and print the result."""
    from edgeprune.api.export import export

    print(export(args.weights, args.data, **given(args, ExportOptions)))
