"""edgeprune bench"""

from __future__ import annotations

from pathlib import Path

from edgeprune_device.commands import add_bundle, add_cuda, find_bundle, positive_float, positive_int

HELP = "measure a bundle on this machine: latency by stage, FPS, accuracy"


def configure(parser) -> None:
    """Options."""
    add_bundle(parser, "default: the only *.epb here, else the newest runs/*/*.epb")
    parser.add_argument(
        "--runtime",
        default="auto",
        help="auto, trt, rtx, ort, ort-cuda, ort-tensorrt, null (null measures the harness); default auto",
    )
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "fp16", "int8", "int8-fp16"),
        help="which model of the bundle; auto takes the best for the runtime, int8 the INT8 file that it takes",
    )
    add_cuda(parser)
    parser.add_argument("--cuda-graph", action="store_true", help="trt: launch the network as one CUDA graph")
    parser.add_argument("--threads", type=positive_int, help="CPU threads for inference; default: the runtime's choice")
    parser.add_argument(
        "--seconds", type=positive_float, default=10.0, help="measure this long, or till 64 frames; default 10"
    )
    parser.add_argument(
        "--warmup", type=positive_float, default=10.0, help="longest warm-up, s; ends when timings settle; default 10"
    )
    parser.add_argument("--no-accuracy", action="store_true", help="leave out the mAP on the evaluation set")
    parser.add_argument(
        "--max-drop", type=positive_float, help="fail (exit 1) when mAP50-95 is lower than the host's by more than this"
    )
    parser.add_argument(
        "--check", action="store_true", help="compare the raw outputs with those of ONNX Runtime on the CPU"
    )
    parser.add_argument("--report", metavar="FILE", type=Path, help="write the whole report as JSON")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")


def run(args) -> None:
    """Verify, measure, report; then the gate."""
    from edgeprune_device import benchmark, files, strict_json
    from edgeprune_device.bundle import Bundle
    from edgeprune_device.errors import GateError, InputError

    if args.max_drop is not None and args.no_accuracy:
        raise InputError("--max-drop needs the accuracy: leave out --no-accuracy")
    if args.report:
        files.check_writable(args.report)
    bundle = Bundle.open(find_bundle(args.bundle), allow_untrusted=args.allow_untrusted)
    report = benchmark.run(
        bundle,
        runtime=args.runtime,
        precision=args.precision,
        threads=args.threads,
        cuda=args.cuda,
        cuda_graph=args.cuda_graph,
        workspace_bytes=args.workspace * 10**6 if args.workspace else None,
        seconds=args.seconds,
        warmup_seconds=args.warmup,
        with_accuracy=not args.no_accuracy,
        check=args.check,
    )
    data = report.to_json()
    if args.report:
        files.write_atomic(args.report, strict_json.pretty(data))
    print(strict_json.pretty(data) if args.json else report.table(), end="")
    if args.max_drop is not None:
        if report.map50_95_delta is None:
            raise GateError("--max-drop cannot be judged: the bundle has no host figure on its evaluation pictures")
        drop = -report.map50_95_delta
        if drop > args.max_drop:
            raise GateError(f"mAP50-95 is {drop:.4f} lower than on the host, more than --max-drop {args.max_drop:g}")
