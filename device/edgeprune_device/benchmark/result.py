"""Makes the report of a benchmark from its measurements."""

from __future__ import annotations

import platform
import statistics
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from nacl.signing import SigningKey

from edgeprune_device import clock, probes, runtimes, version
from edgeprune_device.benchmark.feed import timing_summary
from edgeprune_device.benchmark.measurement import Checks, Machine, Recording, Subject
from edgeprune_device.benchmark.options import BenchmarkOptions
from edgeprune_device.benchmark.precision import int8_is_for_cpu
from edgeprune_device.benchmark.verdict import Evidence, judge
from edgeprune_device.option import named
from edgeprune_device.pipeline import AHEAD, STAGES, slow_stage
from edgeprune_device.printable import printable
from edgeprune_device.probes import summary
from edgeprune_device.reports import percentiles
from edgeprune_device.reports.report import END_TO_END, BenchReport
from edgeprune_device.trust import keys
from edgeprune_device.vision import preprocess

__all__ = ["report"]

_LONGEST_LINE, _LONGEST_TEXT, _MOST_TEXTS = 500, 1000, 100  # in the report's schema

Throttling = Mapping[str, Mapping[str, Optional[int]]]


def report(
    options: BenchmarkOptions,
    machine: Machine,
    subject: Subject,
    recording: Recording,
    checks: Checks,
    key: SigningKey,
) -> BenchReport:
    """Make the report, and sign it.

    Args:
        options: The options of the benchmark.
        machine: The machine before the run.
        subject: The measured model.
        recording: The timing, and the machine's state during the run.
        checks: The accuracy and the output divergence.
        key: This machine's key for reports.
    """
    frames, series = recording.frames, recording.series
    load = (frames.begins_ns[0], frames.begins_ns[-1] + frames.frames_ns[-1])
    stages = _stages(recording)
    drift, throttling = percentiles.drift(frames.begins_ns, frames.frames_ns), summary.throttling(series, load)
    host, comparable = _host_accuracy(subject)
    return BenchReport(
        created=clock.wall(),
        edgeprune_version=version(),
        clock=clock.now(),
        device=_device(machine, key),
        bundle=_bundle(subject),
        precision=subject.precision,
        model=_model(subject),
        runtime=_runtime(options, subject, recording),
        environment=machine.environment,
        board=machine.board.to_json(),
        preflight=machine.preflight.to_json(),
        mode=recording.feed.mode,
        source=_source(recording),
        settings=_settings(options, subject, recording),
        warmup={"frames": frames.warmup_frames, "seconds": frames.warmup_ns / 1e9, "settled": frames.settled},
        interrupted=checks.interrupted,
        failure=None if frames.failure is None else _plain(frames.failure, _LONGEST_TEXT),
        load_ms=recording.load_ms,
        first_inference_ms=frames.first_ns["infer"] / 1e6,
        begins_ns=tuple(frames.begins_ns),
        stages=stages,
        camera=recording.camera,
        drift=drift,
        fps_end_to_end=len(frames.frames_ns) / (frames.wall_ns / 1e9),
        fps_inference=1e3 / max(stages["infer"]["p50_ms"], 1e-6),
        other_load=recording.other_load,
        power=summary.power(series, recording.idle, load, len(frames.frames_ns)),
        thermal=summary.thermal(series, load),
        clocks=summary.clocks(series, load),
        throttling=throttling,
        series=None if series is None else series.to_json(),
        accuracy=checks.accuracy,
        host_accuracy=host,
        map50_95_delta=_delta(checks, host) if comparable else None,
        peak_rss_bytes=checks.peak_rss_bytes,
        memory_drop_bytes=_memory_drop(series, load),
        parity=None if checks.parity is None else checks.parity.to_json(),
        verdict=_verdict(machine, subject, recording, drift, throttling),
        warnings=tuple(_texts(_warnings(machine, subject, recording, checks, throttling, comparable))),
    ).sign(key)


def _device(machine: Machine, key: SigningKey) -> Dict[str, Any]:
    return {
        "hostname": _plain(platform.node(), _LONGEST_LINE) or "unknown",
        "serial": machine.board.serial,
        "key_fingerprint": keys.fingerprint(key.verify_key),
    }


def _bundle(subject: Subject) -> Dict[str, Any]:
    bundle, manifest = subject.bundle, subject.manifest
    return {
        "name": manifest.name,
        "sha256": bundle.sha256,
        "target": manifest.target,
        "key_fingerprint": bundle.key_fingerprint,
        "trusted": bundle.trusted,
    }


def _model(subject: Subject) -> Dict[str, Any]:
    payload = subject.payload
    return {"payload": payload.name, "sha256": payload.sha256, "size_bytes": payload.size_bytes}


def _runtime(options: BenchmarkOptions, subject: Subject, recording: Recording) -> Dict[str, Any]:
    return {
        "name": subject.runtime,
        "description": _plain(recording.session.description, _LONGEST_LINE),
        "threads": options.threads,
        "spinning": recording.session.spinning,
        "trial_ms": None if subject.trial is None else dict(subject.trial.times_ms),
    }


def _source(recording: Recording) -> Dict[str, str]:
    source = recording.feed.source
    return {"name": source.name, "description": _plain(source.description, _LONGEST_LINE)}


def _settings(options: BenchmarkOptions, subject: Subject, recording: Recording) -> Dict[str, Any]:
    return {
        "seconds": recording.plan.seconds,
        "warmup_seconds_max": options.warmup_seconds,
        "idle_seconds": None if recording.idle is None else options.idle_seconds,
        "fps": options.fps,
        "pictures": len(subject.pictures),
        "imgsz": list(subject.manifest.imgsz),
        **subject.manifest.nms,
        "opencv_resize": preprocess.uses_opencv(),
    }


def _stages(recording: Recording) -> Dict[str, Dict[str, Any]]:
    """{stage: the summary of its times}; the whole frame and the GPU's own times are also stages."""
    frames = recording.frames
    # Ctrl-C can leave the GPU a frame or two ahead of the rest.
    on_gpu = {name: ns[: len(frames.frames_ns)] for name, ns in recording.on_device.items()}
    timings = {**frames.stages_ns, END_TO_END: frames.frames_ns, **on_gpu}
    return {name: timing_summary(ns) for name, ns in timings.items()}


def _verdict(
    machine: Machine,
    subject: Subject,
    recording: Recording,
    drift: Optional[Mapping[str, float]],
    throttling: Optional[Throttling],
) -> Dict[str, Any]:
    frames, state = recording.frames, machine.preflight
    verdict = judge(
        Evidence(
            runtime=subject.runtime,
            samples=len(frames.frames_ns),
            settled=frames.settled,
            interrupted=frames.interrupted,
            failure=frames.failure,
            other_load=recording.other_load,
            beforehand=[*([] if state.clocks_locked else machine.environment.warnings()), *state.warnings()],
            drift=drift,
            throttling=throttling,
            camera=recording.camera,
        )
    )
    return {"state": verdict.state, "reasons": _texts(verdict.reasons)}


def _host_accuracy(subject: Subject) -> Tuple[Optional[Dict[str, Optional[float]]], bool]:
    """(the host's figures, whether they were measured on the same images as the evaluation set)."""
    evaluation, model = subject.manifest.evaluation or {}, subject.entry
    same = (evaluation.get("accuracy") or {}).get(subject.precision)
    figures = same if same is not None else model
    host = {name: figures.get(name) for name in ("map50", "map50_95", "small_map50_95")}
    if all(value is None for value in host.values()):
        return None, False
    return host, same is not None or model.get("pictures", evaluation.get("pictures")) == evaluation.get("pictures")


def _delta(checks: Checks, host: Optional[Mapping[str, Optional[float]]]) -> Optional[float]:
    """The mAP50-95 here minus the host's; None if one of them is not known."""
    here = None if checks.accuracy is None else checks.accuracy.map50_95
    there = None if host is None else host["map50_95"]
    return None if here is None or there is None else here - there


def _memory_drop(series: Optional[probes.Series], load: Tuple[int, int]) -> Optional[int]:
    """Free memory of the machine at the first reading minus its minimum until the end of the load, bytes."""
    free = [value for t, value in series.points("memory", "available") if t <= load[1]] if series else []
    return int(free[0] - min(free)) if len(free) > 1 else None


def _warnings(
    machine: Machine,
    subject: Subject,
    recording: Recording,
    checks: Checks,
    throttling: Optional[Throttling],
    comparable: bool,
) -> List[str]:
    """All remarks on the figures, the most important first; the schema limits their number."""
    problem, unmatched = recording.problem, checks.accuracy is not None and not comparable
    return [
        *checks.remarks,
        *([f"power, temperature and clocks were not measured: {problem}"] if problem else []),
        *recording.feed.source.warnings,
        *_slow(recording),
        *machine.preflight.notes(),
        *_remarks(machine, subject),
        *(["accuracy not compared with the host's: the host measured other images"] if unmatched else []),
        *_spikes(throttling),
        *recording.session.warnings,
    ]


def _remarks(machine: Machine, subject: Subject) -> List[str]:
    """Remarks on the bundle and its model; the verdict covers the machine's state."""
    bundle, on_cpu, precision = subject.bundle, runtimes.on_cpu(subject.runtime), subject.precision
    notes = []
    if not bundle.trusted:
        notes.append(f"the bundle is signed by {bundle.key_fingerprint}, a key that is not trusted on this machine")
    if on_cpu and precision.startswith("int8") and not int8_is_for_cpu(bundle.manifest):
        target = named("target", "cpu")
        notes.append(
            f"this INT8 model is made for TensorRT and runs slower than FP32 on a CPU; a build with {target} makes "
            "one for CPUs"
        )
    if on_cpu and precision == "int8" and subject.entry.get("weight_bits", 8) == 8 and machine.environment.saturates:
        notes.append(
            "this CPU has no VNNI, so 8-bit products saturate, and INT8 may be less accurate here than on other "
            "machines"
        )
    return notes


def _slow(recording: Recording) -> List[str]:
    camera = recording.camera
    if camera is None or camera["deadline_ms"] is None:
        return []
    medians_ms = {name: statistics.median(ns) / 1e6 for name, ns in recording.frames.stages_ns.items()}
    slow = slow_stage(medians_ms, camera["deadline_ms"])
    if slow is None:
        return []
    together = [name for name in STAGES if (name in AHEAD) == (slow in AHEAD)]
    return [
        f"stage {slow} is slow: {' and '.join(together)} take {sum(medians_ms[name] for name in together):.1f} ms per "
        f"frame, {slow} {medians_ms[slow]:.1f} ms of it, and the camera gives a frame every "
        f"{camera['deadline_ms']:.1f} ms"
    ]


def _spikes(throttling: Optional[Throttling]) -> List[str]:
    count = throttling["events"].get("oc3") if throttling else None
    return (
        [f"{count} current spikes (event oc3): the power supply is at its limit; use a stronger one"] if count else []
    )


def _plain(text: str, longest: int) -> str:
    """Make the text a line that a report may hold; paths and messages of libraries can contain any character."""
    shown = printable(" ".join(text.split()))
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def _texts(texts: Sequence[str]) -> List[str]:
    return [_plain(text, _LONGEST_TEXT) for text in texts[:_MOST_TEXTS]]
