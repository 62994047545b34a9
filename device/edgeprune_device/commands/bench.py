"""The command `edgeprune bench`."""

from __future__ import annotations

import signal
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Callable, Iterator

from edgeprune_device.commands import add_bundle, add_cuda, find_bundle, positive_float, positive_int

HELP = "measure a bundle on this machine: latency by stage, FPS, accuracy, power, heat"


def configure(parser) -> None:
    """Add the options."""
    add_bundle(parser, "default: the only *.epb here, else the newest runs/*/*.epb")
    parser.add_argument(
        "--mode",
        choices=("single", "sustained", "camera", "offline"),
        help="single: one frame after another; sustained: the same for minutes; camera: at the pace of --fps; offline: "
        "as many as the machine can do; default single, or camera where frames come by themselves or with --fps",
    )
    parser.add_argument(
        "--source",
        default="bundle",
        help="bundle (its evaluation pictures), a folder or picture, a video, /dev/video0, csi, a GStreamer pipeline",
    )
    parser.add_argument("--fps", type=positive_float, help="the camera's pace; pictures and videos then stand for one")
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
        "--seconds",
        type=positive_float,
        help="measure this long, or till 64 frames; default 10, sustained 300, camera 30",
    )
    parser.add_argument(
        "--warmup", type=positive_float, default=10.0, help="longest warm-up, s; ends when timings settle; default 10"
    )
    parser.add_argument(
        "--idle", type=positive_float, default=5.0, help="watch the power at rest this long before, s; default 5"
    )
    parser.add_argument("--no-accuracy", action="store_true", help="leave out the mAP on the evaluation set")
    parser.add_argument(
        "--max-drop", type=positive_float, help="fail (exit 1) when mAP50-95 is lower than the host's by more than this"
    )
    parser.add_argument(
        "--check", action="store_true", help="compare the raw outputs with those of ONNX Runtime on the CPU"
    )
    parser.add_argument("--report", metavar="FILE", type=Path, help="write the whole report as JSON")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write one line a frame")
    parser.add_argument("--no-spool", action="store_true", help="do not keep the report for edgeprune collect")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")


def run(args) -> None:
    """Verify the bundle, measure it, keep the report, show it, then apply the gate."""
    from edgeprune_device import files, strict_json
    from edgeprune_device.benchmark.run import run_benchmark
    from edgeprune_device.errors import DeviceError, InputError, Interrupted
    from edgeprune_device.reports.spool import Spool
    from edgeprune_device.trust.bundle import Bundle

    if args.max_drop is not None and args.no_accuracy:
        raise InputError("--max-drop needs the accuracy: leave out --no-accuracy")
    for path in (args.report, args.csv):
        if path:
            files.check_writable(path)
    bundle = Bundle.open(find_bundle(args.bundle), allow_untrusted=args.allow_untrusted)
    spool = None if args.no_spool else Spool()
    # The spool first, because the reader of the output may have gone away. Then the rest, last to first, each
    # independent of the others: with a full disk the figures are still shown.
    with _hung_up_is_interrupted() as deaf, ExitStack() as rest:
        report = run_benchmark(
            bundle,
            mode=args.mode,
            source=args.source,
            fps=args.fps,
            runtime=args.runtime,
            precision=args.precision,
            threads=args.threads,
            cuda=args.cuda,
            cuda_graph=args.cuda_graph,
            workspace_bytes=args.workspace * 10**6 if args.workspace else None,
            seconds=args.seconds,
            warmup_seconds=args.warmup,
            idle_seconds=args.idle,
            with_accuracy=not args.no_accuracy,
            check=args.check,
            spool=spool,
            measured=deaf,  # making a long run's report takes a while, during which a signal must not end it
        )
        rest.callback(_show, report, args.json)
        if args.csv:
            rest.callback(lambda: files.write_atomic(args.csv, report.csv()))
        if args.report:
            rest.callback(lambda: files.write_atomic(args.report, strict_json.pretty(report.to_json())))
        identity = spool.put(report.to_bytes()) if spool else None
    if identity and not args.json:
        print(f"report      {identity[:12]}, waits for edgeprune collect in {spool.folder}")
    if report.failure:
        raise DeviceError(f"{report.failure}; the report holds what was measured until then")
    if report.interrupted:
        raise Interrupted("interrupted: the report holds what was measured until then")
    if args.max_drop is not None:
        _gate(report, args.max_drop)


@contextmanager
def _hung_up_is_interrupted() -> Iterator[Callable[[], None]]:
    """Treat a lost terminal or SSH link, and SIGTERM, as Ctrl-C, so that the measurements until then are kept.

    Only the first signal counts, because a shell sends it twice. Signals that are ignored, as under nohup, stay
    ignored.

    Yields a function after which these signals and Ctrl-C are ignored until the block ends.
    """
    taken = [number for number in (signal.SIGHUP, signal.SIGTERM) if signal.getsignal(number) == signal.SIG_DFL]

    def interrupt(*_) -> None:
        for number in taken:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in taken:
        signal.signal(number, interrupt)
    by_hand = signal.getsignal(signal.SIGINT)

    def deaf() -> None:
        for number in (*taken, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    try:
        yield deaf
    finally:
        signal.signal(signal.SIGINT, by_hand)
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _show(report, as_json: bool) -> None:
    from edgeprune_device import strict_json

    print(strict_json.pretty(report.to_json()) if as_json else report.table(), end="", flush=True)


def _gate(report, max_drop: float) -> None:
    from edgeprune_device.errors import GateError

    if report.accuracy is None:
        raise GateError(f"--max-drop cannot be judged: no accuracy was measured (runtime {report.runtime['name']})")
    if report.map50_95_delta is None:
        raise GateError("--max-drop cannot be judged: the bundle has no host figure on its evaluation pictures")
    drop = -report.map50_95_delta
    if drop > max_drop:
        raise GateError(f"mAP50-95 is {drop:.4f} lower than on the host, more than --max-drop {max_drop:g}")
