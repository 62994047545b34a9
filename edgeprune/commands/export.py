"""edgeprune export"""

from __future__ import annotations

from pathlib import Path

from edgeprune.commands import options

HELP = "one simplified static ONNX, proven equal; with --data FP16 and INT8 as well"


def configure(parser) -> None:
    options.weights(parser, required=True)
    options.data(parser, required=False, text="needed for parity on real pictures, FP16 and INT8")
    options.imgsz(parser)
    options.target(parser, required=False)
    options.precision(parser)
    options.nms(parser)
    options.out(parser, "folder for the files (default: <weights>-onnx beside it)")
    options.quiet(parser)


def run(args) -> None:
    import onnx
    from edgeprune_device.errors import InputError
    from edgeprune_device.target import Target

    from edgeprune import checkpoint, dataset, exporter
    from edgeprune.progress import Reporter

    precision = options.splitted(args.precision)
    unknown = set(precision) - {"fp32", "fp16", "int8"}
    if unknown:
        raise InputError(f"--precision takes fp32, fp16, int8: got {args.precision}")
    target = Target.load(args.target)
    source = checkpoint.load(args.weights)
    data = dataset.load(args.data) if args.data else None
    if data is None and set(precision) != {"fp32"}:
        raise InputError("FP16 and INT8 are calibrated and measured on pictures: give --data, or --precision fp32")
    if data is not None:
        dataset.check_names(data, source.names)
    out = args.out or args.weights.with_name(f"{args.weights.stem}-onnx")
    with Reporter(quiet=args.quiet).stage("export") as step:
        files, said = exporter.run(
            source, data, source.input_size(args.imgsz), target, precision, args.max_drop, step, suppress=args.nms
        )
    written = exporter.write(files, Path(out))
    for name, path in written.items():
        opset = next(o.version for o in onnx.load(path).opset_import if o.domain in ("", "ai.onnx"))
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB, opset {opset}, {said[name]}")
