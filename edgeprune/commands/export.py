"""The `edgeprune export` command."""

from __future__ import annotations

from edgeprune.commands import options

HELP = "one simplified static ONNX, proven equal; with --data FP16 and INT8 as well"


def configure(parser) -> None:
    """Add the arguments and options of `edgeprune export`."""
    options.weights(parser, required=True)
    options.data(parser, required=False, text="needed for parity on real pictures, FP16 and INT8")
    options.imgsz(parser)
    options.target(parser, required=False)
    options.precision(parser)
    options.nms(parser)
    options.out(parser, "folder for the files (default: <weights>-onnx beside it)")
    options.quiet(parser)


def run(args) -> None:
    """Run `edgeprune export` with parsed arguments, and print the result."""
    from edgeprune.api.export import export

    result = export(
        args.weights, args.data, precision=options.splitted(args.precision), target=args.target, imgsz=args.imgsz,
        max_drop=args.max_drop, nms=args.nms, out=args.out, quiet=args.quiet,
    )  # fmt: skip
    print(result)
