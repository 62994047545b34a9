"""The command `edgeprune bench`."""

from __future__ import annotations

import signal
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Callable, Iterator

from edgeprune_device.commands import add, add_bundle, find_bundle
from edgeprune_device.option import Choice, File, Flag, Number, Option, named
from edgeprune_device.options import (
    CUDA,
    JSON,
    LIMIT,
    MAX_DROP,
    MAX_MEGAPIXELS,
    PRECISION,
    RUNTIME,
    SOURCE,
    THREADS,
    WORKSPACE,
)

if TYPE_CHECKING:
    from edgeprune_device.reports.report import BenchReport

_SECONDS = Number(0, ends="(]")
OPTIONS = (
    Option(
        "mode",
        Choice(("single", "sustained", "camera", "offline")),
        "single: one frame after another; sustained: the same for minutes; camera: frames at the rate of --fps; "
        "offline: maximum throughput (default: single; camera with --fps or a live source)",
        metavar="NAME",
    ),
    SOURCE,
    Option("fps", Number(0, ends="(]"), "frame rate at which images and videos are played, frames/s", metavar="N"),
    RUNTIME,
    PRECISION,
    CUDA,
    WORKSPACE,
    Option("cuda_graph", Flag(), "trt: launch the network as one CUDA graph", default=False),
    THREADS,
    Option("seconds", _SECONDS, "duration of the measurement, s; at least 64 frames are measured (default: 10, "
           "sustained 300, camera 30)", metavar="S"),
    Option("warmup", _SECONDS, "maximum warm-up, s; ends earlier once timings are stable", default=10.0, metavar="S"),
    Option("idle", _SECONDS, "duration of the idle power measurement before the run, s", default=5.0, metavar="S"),
    LIMIT,
    Option("no_accuracy", Flag(), "do not measure the mAP on the evaluation set", default=False),
    MAX_DROP.but(help="fail (exit code 1) if mAP50-95 is lower than the host's figure by more than this"),
    Option("check", Flag(), "compare the raw outputs with the outputs of ONNX Runtime on the CPU", default=False),
    MAX_MEGAPIXELS,
    Option("report", File(), "write the whole report as JSON", metavar="FILE"),
    Option("csv", File(), "write one CSV line per frame", metavar="FILE"),
    Option("no_spool", Flag(), "do not store the report for edgeprune collect", default=False),
    JSON.but(help="print the report as JSON instead of a table"),
)  # fmt: skip
HELP = "measure a bundle on this machine: latency by stage, FPS, accuracy, power, temperature"


def configure(parser: ArgumentParser) -> None:
    """Add the options."""
    add_bundle(parser, "bundle to measure (default: the only *.epb here, else the newest runs/*/*.epb)")
    add(parser, OPTIONS)


def run(args: Namespace) -> None:
    """Verify the bundle, measure it, keep the report, show it, then apply the gate."""
    from edgeprune_device import files, strict_json
    from edgeprune_device.benchmark.options import BenchmarkOptions
    from edgeprune_device.benchmark.run import run_benchmark
    from edgeprune_device.errors import DeviceError, InputError, Interrupted
    from edgeprune_device.reports.spool import Spool
    from edgeprune_device.trust.bundle import Bundle
    from edgeprune_device.vision import preprocess

    if args.max_drop is not None and args.no_accuracy:
        raise InputError(f"{named('max_drop')}: needs the accuracy; leave out {named('no_accuracy', True)}")
    for path in (args.report, args.csv):
        if path:
            files.check_writable(path)
    bundle = Bundle.open(find_bundle(args.bundle), allow_untrusted=args.allow_untrusted)
    spool = None if args.no_spool else Spool()
    # The report is stored first, because the reader of the output may be gone. The other outputs follow, last to first,
    # each independent of the others: the figures are still shown when the disk is full.
    with _hung_up_is_interrupted() as deaf, ExitStack() as rest, preprocess.limited(args.max_megapixels):
        report = run_benchmark(
            bundle,
            BenchmarkOptions(
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
                limit_s=args.limit,
            ),
            spool=spool,
            measured=deaf,  # a signal must not end the assembly of a long run's report
        )
        rest.callback(_show, report, args.json)
        if args.csv:
            rest.callback(lambda: files.write_atomic(args.csv, report.csv()))
        if args.report:
            rest.callback(lambda: files.write_atomic(args.report, strict_json.pretty(report.to_json())))
        identity = spool.put(report.to_bytes()) if spool else None
    if spool and identity and not args.json:
        print(f"report      {identity[:12]}, stored for edgeprune collect in {spool.folder}")
    if report.failure:
        raise DeviceError(f"{report.failure}; the report contains the frames measured before the failure")
    if report.interrupted:
        raise Interrupted("interrupted: the report contains the frames measured before the interruption")
    if args.max_drop is not None:
        _gate(report, args.max_drop)


@contextmanager
def _hung_up_is_interrupted() -> Iterator[Callable[[], None]]:
    """Treat a lost terminal or SSH link, and SIGTERM, as Ctrl-C, so that earlier measurements are kept.

    Only the first signal counts, because a shell sends it twice. Signals that are ignored, as under nohup, stay
    ignored.

    Yields a function after which these signals and Ctrl-C are ignored until the block ends.
    """
    taken = [number for number in (signal.SIGHUP, signal.SIGTERM) if signal.getsignal(number) == signal.SIG_DFL]

    def interrupt(*_: object) -> None:
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


def _show(report: BenchReport, as_json: bool) -> None:
    from edgeprune_device import strict_json

    print(strict_json.pretty(report.to_json()) if as_json else report.table(), end="", flush=True)


def _gate(report: BenchReport, max_drop: float) -> None:
    from edgeprune_device.errors import GateError

    if report.accuracy is None:
        raise GateError(
            f"{named('max_drop')}: cannot be checked, because the accuracy was not measured (runtime "
            f"{report.runtime['name']})"
        )
    if report.map50_95_delta is None:
        raise GateError(
            f"{named('max_drop')}: cannot be checked, because the bundle has no host figure for its evaluation images"
        )
    drop = -report.map50_95_delta
    if drop > max_drop:
        raise GateError(f"mAP50-95: {drop:.4f} lower than on the host (limit {named('max_drop', max_drop)})")
