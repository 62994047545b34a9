"""Bundle -> BenchReport: open a model, time it on frames, read the board's sensors meanwhile, measure its accuracy."""

from __future__ import annotations

import platform
import sys
import time
from array import array
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from edgeprune_device import clock, probes, runtimes, sources, version
from edgeprune_device.benchmark import parity, timing, verdict
from edgeprune_device.benchmark.feed import Feed, timing_summary
from edgeprune_device.benchmark.precision import choose_precision, int8_is_for_cpu
from edgeprune_device.engine import offer
from edgeprune_device.errors import DeviceError, InputError
from edgeprune_device.machine import board, cpu_load, preflight
from edgeprune_device.machine.environment import Environment
from edgeprune_device.printable import printable
from edgeprune_device.probes import summary
from edgeprune_device.progress import Line
from edgeprune_device.reports import percentiles
from edgeprune_device.reports.report import DEVICE_STAGES, END_TO_END, BenchReport
from edgeprune_device.reports.spool import Spool
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.trust.manifest import Manifest
from edgeprune_device.vision import preprocess
from edgeprune_device.vision.accuracy import Accuracy
from edgeprune_device.vision.evaluation import EvaluationSet, evaluate
from edgeprune_device.vision.postprocess import detections

__all__ = ["MODES", "run_benchmark"]

#: How frames follow each other, and how long each is measured by default, s.
MODES = {"single": 10.0, "sustained": 300.0, "camera": 30.0, "offline": 10.0}

_PARITY_PICTURES = 4

_FRAME_BYTES = 140  # in the report's JSON: a time stamp, and a dozen digits for each stage

_ROUND_BYTES = 500  # of the sensors' readings: some forty on a Jetson

_ROUND_S, _MOST_ROUNDS = 0.2, 12000  # the monitor's own limit

_LONGEST_LINE, _LONGEST_TEXT, _MOST_TEXTS = 500, 1000, 100  # in the report's schema

_GLANCE_S = 0.5


def run_benchmark(
    bundle: Bundle,
    *,
    mode: Optional[str] = None,
    source: str = "bundle",
    fps: Optional[float] = None,
    runtime: str = "auto",
    precision: str = "auto",
    threads: Optional[int] = None,
    cuda: str = "auto",
    cuda_graph: bool = False,
    workspace_bytes: Optional[int] = None,
    seconds: Optional[float] = None,
    warmup_seconds: float = 10.0,
    idle_seconds: float = 5.0,
    with_accuracy: bool = True,
    check: bool = False,
    spool: Optional[Spool] = None,
    measured: Optional[Callable[[], None]] = None,
) -> BenchReport:
    """Measure one precision of a verified bundle on this machine.

    Args:
        bundle: The bundle.
        mode: One of `MODES`; None: "camera" for a live source or with `fps`, else "single".
        source: Text of the source, see `sources.open`.
        fps: Pace of mode "camera", frames a second.
        runtime: Name of the runtime, or "auto".
        precision: Precision of the model, or "auto".
        threads: CPU threads of the runtime; None: its own choice.
        cuda: CUDA backend, see `edgeprune_device.cuda.names`.
        cuda_graph: Run the network by a CUDA graph.
        workspace_bytes: Scratch memory for building an engine; None: chosen from the free memory.
        seconds: How long to measure, s; None: as `MODES` gives.
        warmup_seconds: Longest warm-up, s.
        idle_seconds: How long the board is watched at rest before the model is loaded, s; only where it has power
            sensors.
        with_accuracy: Measure the accuracy on the evaluation set.
        check: Measure the output divergence, see `parity`.
        spool: Spool in which disk space for the report is reserved during the measurement.
        measured: Called when all measurements are done and only the report is left to make.

    Returns:
        The signed report.

    Raises:
        InputError: The arguments, the bundle's models and images, or the source do not fit; or there is no room for the
            report.
        RuntimeUnavailable: The runtime cannot run here.
        DeviceError: The GPU or the camera failed before the first frame was measured.
    """
    environment = Environment.read()  # first: afterwards this run itself is the load
    key = keys.load_or_create("report")  # early: a failure must come before the minutes of measuring
    root = probes.sysroot()
    state, machine = preflight.read(root), board.read(root)
    manifest, runtime = bundle.manifest, runtimes.choose(runtime)
    precision = choose_precision(manifest, runtime, precision)
    payload = bundle.payloads[manifest.models[precision]["payload"]]
    pictures = _pictures(bundle)
    model = bundle.read(payload.name)
    with ExitStack() as stack:
        say = stack.enter_context(Line())
        feed = Feed(stack.enter_context(sources.open(source, pictures)), mode, fps)
        stack.callback(feed.source.close)
        plan = timing.TimingPlan(seconds or MODES[feed.mode], warmup_seconds=warmup_seconds)
        settings = runtimes.RuntimeSettings(
            threads=threads,
            spinning=True,  # fastest on a quiet board; the verdict reports a board that was not quiet
            shapes=manifest.shapes,
            precision=precision,
            fp32_nodes=tuple(manifest.models[precision].get("fp32_nodes", ())),
            cuda=cuda,
            graph=cuda_graph,
            workspace_bytes=workspace_bytes,
            offers=offer.of(bundle, precision),
            progress=lambda share, what: say(f"building the engine, {share:.0%} ({what})"),
        )
        resting = cpu_load.read()
        with probes.Monitor(root, _ROUND_S) as monitor:
            idle = _rest(root, idle_seconds, say)
            loaded = cpu_load.read()
            began = time.perf_counter()
            session = runtimes.open(model, runtime, settings)
            stack.callback(_close, session)
            load_ms = (time.perf_counter() - began) * 1e3
            samples, on_device = _measure(session, manifest, feed, plan, spool, say)
            camera, done = feed.camera(), cpu_load.read()
        series = monitor.series()
        unwatched = [f"power, heat and clocks were not measured: {monitor.problem}"] if monitor.problem else []
        accuracy, checked, unchecked, interrupted = None, None, (), samples.interrupted
        peak_rss_bytes = None
        try:
            if with_accuracy and runtime != "null" and not interrupted:  # zeros from null have no accuracy
                accuracy = _accuracy(session, pictures, manifest, say)
            peak_rss_bytes = _peak_rss_bytes()  # before the check, which opens the model a second time
            if check and not interrupted:
                checked, unchecked = _parity(session, model, pictures, manifest)
        except KeyboardInterrupt:  # the timings are complete, and are kept
            interrupted = True
            unchecked = (f"{'parity' if accuracy or not with_accuracy else 'accuracy'} was not measured: interrupted",)
        description, spinning, told = session.description, session.spinning, session.warnings
        if measured:
            measured()
    host, comparable = _host_accuracy(manifest, precision)
    delta = None
    if comparable and accuracy and host and None not in (accuracy.map50_95, host["map50_95"]):
        delta = accuracy.map50_95 - host["map50_95"]
    # Ctrl-C can leave the GPU a frame or two ahead of the rest.
    on_gpu = {name: ns[: len(samples.frames_ns)] for name, ns in on_device.items()}
    timings = {**samples.stages_ns, END_TO_END: samples.frames_ns, **on_gpu}
    stages = {name: timing_summary(ns) for name, ns in timings.items()}
    load = (samples.begins_ns[0], samples.begins_ns[-1] + samples.frames_ns[-1])
    drift = percentiles.drift(samples.begins_ns, samples.frames_ns)
    throttling = summary.throttling(series, load)
    other_load = {"before": cpu_load.others(resting, loaded), "during": cpu_load.others(loaded, done)}
    judged = verdict.judge(
        runtime=runtime,
        samples=len(samples.frames_ns),
        settled=samples.settled,
        interrupted=samples.interrupted,
        failure=samples.failure,
        other_load=other_load,
        beforehand=[*([] if state.clocks_locked else environment.warnings()), *state.warnings()],
        drift=drift,
        throttling=throttling,
        camera=camera,
    )
    return BenchReport(
        created=clock.wall(),
        edgeprune_version=version(),
        clock=clock.now(),
        device={
            "hostname": _plain(platform.node(), _LONGEST_LINE) or "unknown",
            "serial": machine.serial,
            "key_fingerprint": keys.fingerprint(key.verify_key),
        },
        bundle={
            "name": manifest.name,
            "sha256": bundle.sha256,
            "target": manifest.target,
            "key_fingerprint": bundle.key_fingerprint,
            "trusted": bundle.trusted,
        },
        precision=precision,
        model={"payload": payload.name, "sha256": payload.sha256, "size_bytes": payload.size_bytes},
        runtime={
            "name": runtime,
            "description": _plain(description, _LONGEST_LINE),
            "threads": threads,
            "spinning": spinning,
        },
        environment=environment,
        board=machine.to_json(),
        preflight=state.to_json(),
        mode=feed.mode,
        source={"name": feed.source.name, "description": _plain(feed.source.description, _LONGEST_LINE)},
        settings={
            "seconds": plan.seconds,
            "warmup_seconds_max": warmup_seconds,
            "idle_seconds": None if idle is None else idle_seconds,
            "fps": fps,
            "pictures": len(pictures),
            "imgsz": list(manifest.imgsz),
            **manifest.nms,
            "opencv_resize": preprocess.uses_opencv(),
        },
        warmup={
            "frames": samples.warmup_frames,
            "seconds": samples.warmup_ns / 1e9,
            "settled": samples.settled,
        },
        interrupted=interrupted,
        failure=None if samples.failure is None else _plain(samples.failure, _LONGEST_TEXT),
        load_ms=load_ms,
        first_inference_ms=samples.first_ns["infer"] / 1e6,
        begins_ns=tuple(samples.begins_ns),
        stages=stages,
        camera=camera,
        drift=drift,
        fps_end_to_end=len(samples.frames_ns) / (samples.wall_ns / 1e9),
        fps_inference=1e3 / max(stages["infer"]["p50_ms"], 1e-6),
        other_load=other_load,
        power=summary.power(series, idle, load, len(samples.frames_ns)),
        thermal=summary.thermal(series, load),
        clocks=summary.clocks(series, load),
        throttling=throttling,
        series=None if series is None else series.to_json(),
        accuracy=accuracy,
        host_accuracy=host,
        map50_95_delta=delta,
        peak_rss_bytes=peak_rss_bytes,
        memory_drop_bytes=_memory_drop(series, load),
        parity=None if checked is None else checked.to_json(),
        verdict={"state": judged.state, "reasons": _texts(judged.reasons)},
        warnings=tuple(
            _texts(
                [
                    *unchecked,
                    *unwatched,
                    *feed.source.warnings,
                    *state.notes(),
                    *_warnings(bundle, environment, runtime, precision, accuracy is not None, comparable),
                    *_spikes(throttling),
                    *told,
                ]
            )
        ),
    ).sign(key)


def _measure(session, manifest: Manifest, feed: Feed, plan: timing.TimingPlan, spool: Optional[Spool], say):
    """Run the timing; (FrameTimes, {stage of the device: ns of each frame})."""
    on_device: Dict[str, array] = {}

    def device_times() -> None:
        times = session.device_ms  # once: each time it asks the driver
        for name in DEVICE_STAGES if times else ():
            on_device.setdefault(name, array("q")).append(round(times[name] * 1e6))

    def warmed(median_ns: int) -> None:
        if spool is not None:
            # Of the three parts of offline, the slowest alone sets the pace: at best three frames in the time of one.
            fps = 1e9 / max(median_ns, 1) * (3 if feed.mode == "offline" else 1)
            frames = plan.seconds * min(fps, feed.fps or fps)
            rounds = min(plan.seconds / _ROUND_S, _MOST_ROUNDS)
            spool.reserve(int(frames * _FRAME_BYTES + rounds * _ROUND_BYTES) + (1 << 20))
        on_device.clear()
        feed.begin()  # last: a camera's frames do not wait for a disk

    def after(frame: sources.Frame, end_ns: int) -> None:
        feed.done(frame, end_ns)
        device_times()

    stages = _stages(session, manifest, feed.source)
    if feed.mode != "offline":
        return timing.measure(stages, feed.next, plan, warmed=warmed, after=after, progress=say), on_device
    # Another frame is in the GPU when this one is done: its times are read at once, in its own thread.
    stages["infer"] = _followed(stages["infer"], device_times)
    return timing.pipelined(stages, feed.next, plan, middle="infer", warmed=warmed, progress=say), on_device


def _followed(step, then):
    def both(value):
        result = step(value)
        then()
        return result

    return both


def _close(session) -> None:
    """Close the session. A GPU that failed may fail again here, which must not lose the measurements."""
    with suppress(DeviceError):
        session.close()


def _plain(text: str, longest: int) -> str:
    """The text as a line that a report may hold: paths and messages of libraries can hold any character."""
    shown = printable(" ".join(text.split()))
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def _texts(found: Sequence[str]) -> List[str]:
    return [_plain(text, _LONGEST_TEXT) for text in found[:_MOST_TEXTS]]


def _rest(root: Path, seconds: float, say) -> Optional[Tuple[int, int]]:
    """Watch the machine at rest, for at least half a second, so that the load of other programs shows.

    Returns:
        (begin, end) of that window, time.monotonic_ns, where there are power sensors; else None.
    """
    powered = any(channel.kind == "power" for channel in probes.discover(root))
    begin = now = time.monotonic_ns()
    while now < begin + int((seconds if powered else _GLANCE_S) * 1e9):
        say(f"watching the machine at rest, {(now - begin) / 1e9:.0f} s")
        time.sleep(0.1)
        now = time.monotonic_ns()
    return (begin, now) if powered else None


def _memory_drop(series: Optional[probes.Series], load: Tuple[int, int]) -> Optional[int]:
    """Free memory of the whole machine at the first reading, less its minimum until the load's end, in bytes."""
    free = [value for t, value in series.points("memory", "available") if t <= load[1]] if series else []
    return int(free[0] - min(free)) if len(free) > 1 else None


def _pictures(bundle: Bundle) -> EvaluationSet:
    if bundle.manifest.evaluation is None:
        raise InputError(f"{bundle.path}: has no evaluation pictures to measure on")
    name = bundle.manifest.evaluation["payload"]
    pictures = EvaluationSet.read(bundle.read(name), f"{bundle.path}: {name}")
    if not len(pictures):
        raise InputError(f"{bundle.path}: {name} holds no picture")
    return pictures


def _stages(session, manifest: Manifest, source: sources.Source) -> Dict[str, Any]:
    """The stages decode, pre, infer and post. Data for later stages travels beside the image."""
    classes, kind, nms = len(manifest.classes), manifest.output, dict(manifest.nms)

    def infer(prepared):
        return session.infer(prepared[0]), prepared[1]

    def post(inferred):
        return inferred[1].undo(detections(inferred[0], kind, classes=classes, **nms))

    return {"decode": source.decode, "pre": preprocess.Preprocessor(manifest.imgsz), "infer": infer, "post": post}


def _parity(session, model: bytes, pictures: EvaluationSet, manifest: Manifest):
    """(the RuntimeParity, no warnings), or (None, why it was not measured)."""
    if session.name == "null":
        return None, ("parity was not measured: runtime null runs no model",)
    few = list(pictures)[:_PARITY_PICTURES]
    inputs = (preprocess.letterbox(preprocess.decode(picture.data, picture.name), manifest.imgsz)[0] for picture in few)
    try:
        return parity.measure(session, model, inputs, len(manifest.classes), manifest.output), ()
    except InputError as error:
        return None, (f"parity was not measured: {error}",)


def _accuracy(session, pictures: EvaluationSet, manifest: Manifest, say) -> Accuracy:
    accuracy, _ = evaluate(
        session,
        pictures,
        imgsz=manifest.imgsz,
        classes=manifest.classes,
        kind=manifest.output,
        progress=lambda done: say(f"accuracy, picture {done} of {len(pictures)}"),
    )
    return accuracy


def _host_accuracy(manifest: Manifest, precision: str) -> Tuple[Optional[Dict[str, Optional[float]]], bool]:
    """(the host's figures, whether they were measured on the same images as the evaluation set)."""
    evaluation, model = manifest.evaluation or {}, manifest.models[precision]
    same = (evaluation.get("accuracy") or {}).get(precision)
    figures = same if same is not None else model
    keys = ("map50", "map50_95", "small_map50_95")
    host = {key: figures.get(key) for key in keys}
    if all(value is None for value in host.values()):
        return None, False
    return host, same is not None or model.get("pictures", evaluation.get("pictures")) == evaluation.get("pictures")


def _warnings(bundle, environment, runtime, precision, judged, comparable) -> List[str]:
    """Remarks on the figures that do not concern the machine's state; that belongs to the verdict."""
    found = []
    if not bundle.trusted:
        found.append(f"the bundle is signed by {bundle.key_fingerprint}, which is not trusted here")
    if runtime == "ort" and precision.startswith("int8") and not int8_is_for_cpu(bundle.manifest):
        found.append("this INT8 model is in TensorRT's form, slower than FP32 on a CPU (--target cpu makes the CPU's)")
    bits = bundle.manifest.models[precision].get("weight_bits", 8)
    if runtime == "ort" and precision == "int8" and bits == 8 and environment.saturates:
        found.append("this CPU has no VNNI: 8-bit products saturate, so INT8 accuracy here may be lower than elsewhere")
    if judged and not comparable:
        found.append("the host states no accuracy on these very pictures: no delta")
    return found


def _spikes(throttling) -> List[str]:
    count = throttling["events"].get("oc3") if throttling else None
    return [f"{count} current spikes (oc3): the supply is at its limit, though it held"] if count else []


def _peak_rss_bytes() -> Optional[int]:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
