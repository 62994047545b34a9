"""Bundle -> BenchReport: opens a model, times it on frames while reading the board's sensors, measures its accuracy."""

from __future__ import annotations

import sys
import time
from array import array
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import numpy as np

from edgeprune_device import deadline, probes, runtimes, sources
from edgeprune_device.benchmark import parity, result, timing
from edgeprune_device.benchmark.feed import Feed
from edgeprune_device.benchmark.measurement import Checks, Machine, Recording, Subject
from edgeprune_device.benchmark.options import MODES, BenchmarkOptions
from edgeprune_device.engine import offer
from edgeprune_device.errors import DeviceError, InputError
from edgeprune_device.machine import cpu_load
from edgeprune_device.output import BEST, RAW
from edgeprune_device.pipeline import AHEAD
from edgeprune_device.progress import Line, Say
from edgeprune_device.reports.report import DEVICE_STAGES, BenchReport
from edgeprune_device.reports.spool import Spool
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.trust.manifest import Manifest
from edgeprune_device.vision import preprocess, tasks
from edgeprune_device.vision.accuracy import Accuracy
from edgeprune_device.vision.evaluation import evaluate

__all__ = ["run_benchmark"]

_PARITY_PICTURES = 4

_FRAME_BYTES = 140  # in the report's JSON: a time stamp, and a dozen digits for each stage

_ROUND_BYTES = 500  # of the sensors' readings: some forty on a Jetson

_ROUND_S, _MOST_ROUNDS = 0.2, 12000  # the monitor's own limit

_GLANCE_S = 0.5

_PARTS = {"offline": 3, "camera": 2}  # parts of the pipeline that overlap


def run_benchmark(
    bundle: Bundle,
    options: BenchmarkOptions,
    *,
    spool: Optional[Spool] = None,
    measured: Optional[Callable[[], None]] = None,
) -> BenchReport:
    """Measure one precision of a verified bundle on this machine.

    Args:
        bundle: The bundle.
        options: How to measure it.
        spool: Spool in which disk space for the report is reserved during the measurement.
        measured: Called after all measurements, before the report is made.

    Returns:
        The signed report.

    Raises:
        InputError: The options, the bundle's models and images, or the source do not fit; or the disk has no room for
            the report.
        RuntimeUnavailable: The runtime cannot run here.
        DeviceError: The GPU or the camera failed before the first frame was measured.
    """
    machine = Machine.read()  # read first: later this run is itself the load
    key = keys.load_or_create("report")  # loaded early: a failure must come before minutes of measuring
    subject = Subject.choose(bundle, options.runtime, options.precision, options.threads, options.limit_s)
    with ExitStack() as stack:
        say = stack.enter_context(Line())
        feed = Feed(stack.enter_context(sources.open(options.source, subject.pictures)), options.mode, options.fps)
        stack.callback(feed.source.close)
        recording = _record(options, machine, subject, feed, spool, say, stack)
        checks = _check(options, subject, recording, say)
        if measured:
            measured()
    return result.report(options, machine, subject, recording, checks, key)


def _record(
    options: BenchmarkOptions,
    machine: Machine,
    subject: Subject,
    feed: Feed,
    spool: Optional[Spool],
    say: Say,
    stack: ExitStack,
) -> Recording:
    """Watch the idle machine, open the model and time the frames; `stack` closes the session."""
    plan = timing.TimingPlan(options.seconds or MODES[feed.mode], warmup_seconds=options.warmup_seconds)
    settings = _runtime_settings(options, subject, say)
    resting = cpu_load.read()
    with probes.Monitor(machine.root, _ROUND_S) as monitor:
        idle = _rest(machine.root, options.idle_seconds, say)
        loaded = cpu_load.read()
        began = time.perf_counter()
        with deadline.limited(runtimes.load_limit(subject.runtime, options.limit_s), "loading the model"):
            session = runtimes.open(subject.model, subject.runtime, settings)
        stack.callback(_close, session)
        load_ms = (time.perf_counter() - began) * 1e3
        with deadline.limited(plan.longest_s + options.limit_s, "the first inference and the measurement"):
            frames, on_device = _time(session, subject.manifest, feed, plan, spool, say)
        camera, done = feed.camera(), cpu_load.read()
    return Recording(
        session=session,
        feed=feed,
        plan=plan,
        load_ms=load_ms,
        frames=frames,
        on_device=on_device,
        camera=camera,
        idle=idle,
        other_load={"before": cpu_load.others(resting, loaded), "during": cpu_load.others(loaded, done)},
        series=monitor.series(),
        problem=monitor.problem,
    )


def _runtime_settings(options: BenchmarkOptions, subject: Subject, say: Say) -> runtimes.RuntimeSettings:
    return runtimes.RuntimeSettings(
        threads=options.threads,
        spinning=True,  # fastest on an idle board; the verdict reports other load
        shapes=tasks.get(subject.manifest.task).shapes(subject.manifest),
        precision=subject.precision,
        fp32_nodes=tuple(subject.entry.get("fp32_nodes", ())),
        cuda=options.cuda,
        graph=options.cuda_graph,
        workspace_bytes=options.workspace_bytes,
        offers=offer.of(subject.bundle, subject.precision),
        progress=lambda fraction, text: say(f"building the engine: {fraction:.0%} ({text})"),
    )


def _time(
    session: runtimes.Session,
    manifest: Manifest,
    feed: Feed,
    plan: timing.TimingPlan,
    spool: Optional[Spool],
    say: Say,
) -> Tuple[timing.FrameTimes, Dict[str, array[int]]]:
    """Run the timing, and return (times of the frames, {stage of the device: ns of each frame})."""
    on_device: Dict[str, array[int]] = {}

    def device_times() -> None:
        times = session.device_ms  # read once, because each access asks the driver
        if times is None:
            return
        for name in DEVICE_STAGES:
            on_device.setdefault(name, array("q")).append(round(times[name] * 1e6))

    def warmed(median_ns: int) -> None:
        if spool is not None:
            # The slowest of the parts that overlap sets the rate: at best as many frames in the time of one.
            fps = 1e9 / max(median_ns, 1) * _PARTS.get(feed.mode, 1)
            frames = plan.seconds * min(fps, feed.fps or fps)
            rounds = min(plan.seconds / _ROUND_S, _MOST_ROUNDS)
            spool.reserve(int(frames * _FRAME_BYTES + rounds * _ROUND_BYTES) + (1 << 20))
        on_device.clear()
        feed.begin()  # last, because a camera does not wait for the disk

    def after(frame: sources.Frame, end_ns: int) -> None:
        feed.done(frame, end_ns)
        device_times()

    stages = _stages(session, manifest, feed.source)
    if feed.mode == "camera":  # as in `edgeprune run`
        frames = timing.pipelined(
            stages,
            feed.next,
            plan,
            middle=[name for name in stages if name not in AHEAD],
            latest=True,
            warmed=warmed,
            after=after,
            progress=say,
        )
    elif feed.mode == "offline":
        # The GPU works on another frame when this one is done, so its times are read at once, in its thread.
        stages["infer"] = _followed(stages["infer"], device_times)
        frames = timing.pipelined(stages, feed.next, plan, middle=["infer"], warmed=warmed, progress=say)
    else:
        needed = after if session.times_device else None
        frames = timing.measure(stages, feed.next, plan, warmed=warmed, after=needed, progress=say)
    return frames, on_device


def _followed(step: Callable[[Any], Any], then: Callable[[], None]) -> Callable[[Any], Any]:
    def both(value: Any) -> Any:
        outcome = step(value)
        then()
        return outcome

    return both


def _close(session: runtimes.Session) -> None:
    """Close the session. A GPU that failed may fail again here, which must not lose the measurements."""
    with suppress(DeviceError):
        session.close()


def _rest(root: Path, seconds: float, say: Say) -> Optional[Tuple[int, int]]:
    """Watch the idle machine for at least half a second, to detect the load of other programs.

    Returns:
        (begin, end) of that window, time.monotonic_ns; None without power sensors.
    """
    powered = any(channel.kind == "power" for channel in probes.discover(root))
    begin = now = time.monotonic_ns()
    while now < begin + int((seconds if powered else _GLANCE_S) * 1e9):
        say(f"watching the idle machine, {(now - begin) / 1e9:.0f} s")
        time.sleep(0.1)
        now = time.monotonic_ns()
    return (begin, now) if powered else None


def _stages(session: runtimes.Session, manifest: Manifest, source: sources.Source) -> Dict[str, Callable[[Any], Any]]:
    """The stages decode, pre, infer and post. Data for later stages is passed on beside the image."""
    task, classes, kind, nms = tasks.get(manifest.task), len(manifest.classes), manifest.output, dict(manifest.nms)
    rest = RAW if kind == BEST else kind  # the outputs between infer and post

    def infer(prepared: Tuple[np.ndarray, preprocess.Letterbox]) -> Tuple[Sequence[np.ndarray], preprocess.Letterbox]:
        outputs = session.infer(prepared[0])
        # Here, because post may run in another thread, which cannot read a raw output on the GPU.
        if kind == BEST:
            outputs = task.narrowed(outputs, classes, nms["conf"])
        return outputs, prepared[1]

    def post(inferred: Tuple[Sequence[np.ndarray], preprocess.Letterbox]) -> np.ndarray:
        return task.undo(task.detections(inferred[0], rest, classes=classes, **nms), inferred[1])

    pre = preprocess.Preprocessor(manifest.imgsz, manifest.layout)
    return {"decode": source.decode, "pre": pre, "infer": infer, "post": post}


def _check(options: BenchmarkOptions, subject: Subject, recording: Recording, say: Say) -> Checks:
    """Measure the accuracy and the output divergence, if requested; Ctrl-C ends this early."""
    checks, session = Checks(recording.frames.interrupted), recording.session
    try:
        # Runtime null returns zeros, which have no accuracy.
        if options.with_accuracy and subject.runtime != "null" and not checks.interrupted:
            with deadline.limited(options.limit_s, "the accuracy measurement"):
                checks.accuracy = _accuracy(session, subject, say)
        checks.peak_rss_bytes = _peak_rss_bytes()  # before the divergence, which opens the model a second time
        if options.check and not checks.interrupted:
            with deadline.limited(options.limit_s, "the comparison of the outputs"):
                checks.parity, checks.remarks = _parity(session, subject)
    except KeyboardInterrupt:  # the timings are complete, and are kept
        checks.interrupted = True
        missing = "parity" if checks.accuracy or not options.with_accuracy else "accuracy"
        checks.remarks = (f"{missing} was not measured: interrupted",)
    return checks


def _parity(session: runtimes.Session, subject: Subject) -> Tuple[Optional[parity.RuntimeParity], Tuple[str, ...]]:
    """Return (the divergence, no remarks), or (None, why it was not measured)."""
    if session.name == "null":
        return None, ("parity was not measured: runtime null runs no model",)
    manifest, few = subject.manifest, list(subject.pictures)[:_PARITY_PICTURES]
    images = (preprocess.decode(picture.data, picture.name) for picture in few)
    inputs = (preprocess.letterbox(image, manifest.imgsz, manifest.layout)[0] for image in images)
    task = tasks.get(manifest.task)
    try:
        return parity.measure(session, subject.model, inputs, len(manifest.classes), manifest.output, task), ()
    except InputError as error:
        return None, (f"parity was not measured: {error}",)


def _accuracy(session: runtimes.Session, subject: Subject, say: Say) -> Accuracy:
    manifest, count = subject.manifest, len(subject.pictures)
    accuracy, _ = evaluate(
        session,
        subject.pictures,
        imgsz=manifest.imgsz,
        classes=manifest.classes,
        kind=manifest.output,
        layout=manifest.layout,
        task=tasks.get(manifest.task),
        progress=lambda done: say(f"accuracy, image {done} of {count}"),
    )
    return accuracy


def _peak_rss_bytes() -> Optional[int]:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
