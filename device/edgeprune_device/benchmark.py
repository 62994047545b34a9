"""Bundle -> BenchReport: open a model, time it on frames, watch the board meanwhile, measure its accuracy."""

from __future__ import annotations

import platform
import sys
import time
from array import array
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from edgeprune_device import (
    bench,
    board,
    clock,
    cpu_load,
    keys,
    parity,
    percentiles,
    preflight,
    probes,
    runtimes,
    sources,
    verdict,
    version,
    vision,
)
from edgeprune_device.accuracy import Accuracy
from edgeprune_device.bundle import Bundle
from edgeprune_device.engine import offer
from edgeprune_device.environment import Environment
from edgeprune_device.errors import DeviceError, InputError
from edgeprune_device.evaluation import EvaluationSet, evaluate
from edgeprune_device.manifest import Manifest
from edgeprune_device.printable import printable
from edgeprune_device.probes import summary
from edgeprune_device.progress import Line
from edgeprune_device.report import DEVICE_STAGES, END_TO_END, BenchReport
from edgeprune_device.spool import Spool
from edgeprune_device.target import Target

__all__ = ["MODES", "choose_precision", "int8_is_for_cpu", "run"]

#: How frames follow each other, and how long each is measured by default, s.
MODES = {"single": 10.0, "sustained": 300.0, "camera": 30.0, "offline": 10.0}
_PARITY_PICTURES = 4
_FRAME_BYTES = 140  # in the report's JSON: a time stamp, and a dozen digits for each stage
_ROUND_BYTES = 500  # of the sensors' readings: some forty on a Jetson
_ROUND_S, _MOST_ROUNDS = 0.2, 12000  # the monitor's own limit
_FRAME_TIMEOUT_S = 10.0
_PACES_FPS = (0.1, 1000)
_LONGEST_LINE, _LONGEST_TEXT, _MOST_TEXTS = 500, 1000, 100  # in the report's schema
_GLANCE_S = 0.5


def run(
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
    """Measure one precision of a verified bundle on this machine; a signed report.

    - `mode`: of `MODES`; None: "camera" for a source that gives frames by itself, else "single"
    - `source`: see `sources.open`; `fps`: the pace of mode "camera"
    - `idle_seconds`: how long the board is watched at rest, before anything is loaded; only where it has power sensors
    - `check`: its outputs, too, see `parity`; `spool`: where room for the report is kept while it is measured
    - `measured`: called when all is measured, and only the report is left to do
    """
    environment = Environment.read()  # first: afterwards this run itself is the load
    key = keys.load_or_create("report")  # what could fail does so before the minutes of measuring
    root = probes.sysroot()
    state, machine = preflight.read(root), board.read(root)
    manifest, runtime = bundle.manifest, runtimes.choose(runtime)
    precision = choose_precision(manifest, runtime, precision)
    payload = bundle.payloads[manifest.models[precision]["payload"]]
    pictures = _pictures(bundle)
    model = bundle.read(payload.name)
    with ExitStack() as stack:
        say = stack.enter_context(Line())
        feed = _Feed(stack.enter_context(sources.open(source, pictures)), mode, fps)
        stack.callback(feed.source.close)
        plan = bench.Plan(seconds or MODES[feed.mode], warmup_seconds=warmup_seconds)
        settings = runtimes.Settings(
            threads=threads,
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
        except KeyboardInterrupt:  # the timings are whole, and stay
            interrupted = True
            unchecked = (f"{'parity' if accuracy or not with_accuracy else 'accuracy'} was not measured: interrupted",)
        description, told = session.description, session.warnings
        if measured:
            measured()
    host, comparable = _host_accuracy(manifest, precision)
    delta = None
    if comparable and accuracy and host and None not in (accuracy.map50_95, host["map50_95"]):
        delta = accuracy.map50_95 - host["map50_95"]
    # Ctrl-C can leave the GPU a frame or two ahead of the rest.
    on_gpu = {name: ns[: len(samples.frames_ns)] for name, ns in on_device.items()}
    timings = {**samples.stages_ns, END_TO_END: samples.frames_ns, **on_gpu}
    stages = {name: _timing(ns) for name, ns in timings.items()}
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
        runtime={"name": runtime, "description": _plain(description, _LONGEST_LINE), "threads": threads},
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
            "opencv_resize": vision.uses_opencv(),
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


def _measure(session, manifest: Manifest, feed: _Feed, plan: bench.Plan, spool: Optional[Spool], say):
    """(Samples, {stage of the device: ns of each frame})."""
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
        return bench.measure(stages, feed.next, plan, warmed=warmed, after=after, progress=say), on_device
    # Another frame is in the GPU when this one is done: its times are read at once, in its own thread.
    stages["infer"] = _followed(stages["infer"], device_times)
    return bench.pipelined(stages, feed.next, plan, middle="infer", warmed=warmed, progress=say), on_device


class _Feed:
    """Where the next frame comes from in each mode, and what became of those that came by themselves."""

    def __init__(self, source: sources.Source, mode: Optional[str], fps: Optional[float]):
        self.mode = mode or ("camera" if source.live or fps else "single")
        if source.live and self.mode != "camera":
            raise InputError(f"mode {self.mode} needs frames that wait; a camera's do not: use --mode camera")
        if fps and self.mode != "camera":
            raise InputError(f"--fps is the pace of mode camera, and means nothing in mode {self.mode}")
        if self.mode == "camera" and not source.live:
            if not (fps or source.fps):
                raise InputError("mode camera needs --fps, the pace of the camera that these pictures stand for")
            pace = fps or source.fps
            if not _PACES_FPS[0] <= pace <= _PACES_FPS[1]:
                limits = f"between {_PACES_FPS[0]} and {_PACES_FPS[1]}"
                raise InputError(f"{pace:g} frames a second: a camera's pace must lie {limits}; set it by --fps")
            source = sources.Paced(source, pace)
        self.source, self.fps = source, (source.fps or fps) if self.mode == "camera" else None
        self._ages_ns = array("q")
        self._before = (0, 0, 0)
        if self.mode == "camera":
            self.next = lambda: source.next(_FRAME_TIMEOUT_S)
        else:
            frames = source.frames()
            self.next = lambda: next(frames)

    def begin(self) -> None:
        """From now on frames count: those after the one that is due by now."""
        if self.mode == "camera":
            self.next()
        self._before = self._counts()

    def done(self, frame: sources.Frame, end_ns: int) -> None:
        """A measured frame's result is there."""
        if self.mode == "camera":
            self._ages_ns.append(end_ns - frame.due_ns)

    def camera(self) -> Optional[Dict[str, Any]]:
        """The report's `camera`, None in the other modes."""
        if self.mode != "camera" or not self._ages_ns:
            return None
        arrived, dropped, late = (now - then for now, then in zip(self._counts(), self._before))
        deadline_ns = 1e9 / self.fps if self.fps else None
        return {
            "fps": self.fps,
            "deadline_ms": None if deadline_ns is None else deadline_ns / 1e6,
            "arrived": arrived,
            "dropped": dropped,
            "late": late,
            "processed": len(self._ages_ns),
            "missed": None if deadline_ns is None else sum(age > deadline_ns for age in self._ages_ns),
            "age": _timing(self._ages_ns),
        }

    def _counts(self) -> Tuple[int, int, int]:
        source = self.source
        return (source.arrived, source.dropped, source.late) if self.mode == "camera" else (0, 0, 0)


def _followed(step, then):
    def both(value):
        result = step(value)
        then()
        return result

    return both


def _close(session) -> None:
    """A GPU that failed may fail at that, too: no reason to lose what was measured."""
    with suppress(DeviceError):
        session.close()


def _timing(ns) -> Dict[str, Any]:
    return {**percentiles.summary(ns), "samples_ns": list(ns)}


def _plain(text: str, longest: int) -> str:
    """A line as a report may hold it: paths and the words of libraries can be anything, and a report is never lost."""
    shown = printable(" ".join(text.split()))
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def _texts(found: Sequence[str]) -> List[str]:
    return [_plain(text, _LONGEST_TEXT) for text in found[:_MOST_TEXTS]]


def _rest(root: Path, seconds: float, say) -> Optional[Tuple[int, int]]:
    """Watch the machine at rest: (begin, end) of that window where there is power to measure, else None. At least half
    a second, in which others show."""
    powered = any(channel.kind == "power" for channel in probes.discover(root))
    begin = now = time.monotonic_ns()
    while now < begin + int((seconds if powered else _GLANCE_S) * 1e9):
        say(f"watching the machine at rest, {(now - begin) / 1e9:.0f} s")
        time.sleep(0.1)
        now = time.monotonic_ns()
    return (begin, now) if powered else None


def _memory_drop(series: Optional[probes.Series], load: Tuple[int, int]) -> Optional[int]:
    """Free memory of the whole machine at the first reading, less its least until the load's end."""
    free = [value for t, value in series.points("memory", "available") if t <= load[1]] if series else []
    return int(free[0] - min(free)) if len(free) > 1 else None


def choose_precision(manifest: Manifest, runtime: str, precision: str = "auto") -> str:
    """The precision to run; InputError, with the manifest's reason, when the bundle does not carry it."""
    present = [name for name, entry in manifest.models.items() if entry["payload"] is not None]
    wanted = runtimes.order(runtime, precision, int8_is_for_cpu(manifest))
    if precision == "auto" and runtime == "ort" and Environment.read().saturates:
        # Made where nothing saturates: what it loses here, nobody has measured.
        wide = manifest.models.get("int8", {}).get("weight_bits", 8) == 8
        wanted = tuple(p for p in wanted if not (wide and p == "int8"))
    found = [name for name in wanted if name in present]
    if found:
        return found[0]
    if precision == "auto" and not present:
        raise InputError(f"bundle {manifest.name} carries no model")
    if precision == "auto":
        raise InputError(
            f"runtime {runtime} takes {', '.join(wanted)}; bundle {manifest.name} has {', '.join(present)}"
        )
    if precision not in present:
        reason = manifest.models.get(precision, {}).get("reason")
        because = f" ({reason})" if reason else ""
        raise InputError(
            f"bundle {manifest.name} has no {precision} model{because}; it has {', '.join(present) or 'none'}"
        )
    return precision


def int8_is_for_cpu(manifest: Manifest) -> bool:
    """Whether the bundle's INT8 model is in the unsigned form for CPUs, which TensorRT does not read."""
    # A target of the user's own is not known here by name; its INT8 then counts as TensorRT's.
    return manifest.target in Target.names() and Target.load(manifest.target).int8_activations == "unsigned"


def _pictures(bundle: Bundle) -> EvaluationSet:
    if bundle.manifest.evaluation is None:
        raise InputError(f"{bundle.path}: has no evaluation pictures to measure on")
    name = bundle.manifest.evaluation["payload"]
    pictures = EvaluationSet.read(bundle.read(name), f"{bundle.path}: {name}")
    if not len(pictures):
        raise InputError(f"{bundle.path}: {name} holds no picture")
    return pictures


def _stages(session, manifest: Manifest, source: sources.Source) -> Dict[str, Any]:
    """decode, pre, infer, post; what a later stage needs of an earlier one travels beside the picture."""
    classes, kind, nms = len(manifest.classes), manifest.output, dict(manifest.nms)

    def infer(prepared):
        return session.infer(prepared[0]), prepared[1]

    def post(inferred):
        return inferred[1].undo(vision.detections(inferred[0], kind, classes=classes, **nms))

    return {"decode": source.decode, "pre": vision.Preprocessor(manifest.imgsz), "infer": infer, "post": post}


def _parity(session, model: bytes, pictures: EvaluationSet, manifest: Manifest):
    """(the Parity, no warnings), or (None, why it was not measured)."""
    if session.name == "null":
        return None, ("parity was not measured: runtime null runs no model",)
    few = list(pictures)[:_PARITY_PICTURES]
    inputs = (vision.letterbox(vision.decode(picture.data, picture.name), manifest.imgsz)[0] for picture in few)
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
    """(the host's figures, whether they were measured on the very pictures of the evaluation set)."""
    evaluation, model = manifest.evaluation or {}, manifest.models[precision]
    same = (evaluation.get("accuracy") or {}).get(precision)
    figures = same if same is not None else model
    keys = ("map50", "map50_95", "small_map50_95")
    host = {key: figures.get(key) for key in keys}
    if all(value is None for value in host.values()):
        return None, False
    return host, same is not None or model.get("pictures", evaluation.get("pictures")) == evaluation.get("pictures")


def _warnings(bundle, environment, runtime, precision, judged, comparable) -> List[str]:
    """What to know of the figures that is no fault of the machine's state: that is the verdict's."""
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
