"""Bundle -> BenchReport: open a model, time it on the bundle's own pictures, measure its accuracy on them."""

from __future__ import annotations

import sys
import time
from datetime import datetime, timezone
from typing import Any, Dict, List, Optional, Tuple

from edgeprune_device import bench, parity, runtimes, version, vision
from edgeprune_device.accuracy import Accuracy
from edgeprune_device.bundle import Bundle
from edgeprune_device.environment import Environment
from edgeprune_device.errors import InputError
from edgeprune_device.evaluation import EvaluationSet, evaluate
from edgeprune_device.manifest import Manifest
from edgeprune_device.progress import Line
from edgeprune_device.report import DEVICE_STAGES, END_TO_END, BenchReport
from edgeprune_device.target import Target

__all__ = ["choose_precision", "int8_is_for_cpu", "run"]

_PARITY_PICTURES = 4


def run(
    bundle: Bundle,
    *,
    runtime: str = "auto",
    precision: str = "auto",
    threads: Optional[int] = None,
    cuda: str = "auto",
    cuda_graph: bool = False,
    workspace_bytes: Optional[int] = None,
    seconds: float = 10.0,
    warmup_seconds: float = 10.0,
    with_accuracy: bool = True,
    check: bool = False,
) -> BenchReport:
    """Measure one precision of a verified bundle on this machine. `check`: its outputs, too, see `parity`."""
    environment = Environment.read()  # first: afterwards this run itself is the load
    manifest, runtime = bundle.manifest, runtimes.choose(runtime)
    precision = choose_precision(manifest, runtime, precision)
    payload = bundle.payloads[manifest.models[precision]["payload"]]
    pictures = _pictures(bundle)
    model = bundle.read(payload.name)
    with Line() as say:
        settings = runtimes.Settings(
            threads=threads,
            shapes=manifest.shapes,
            precision=precision,
            fp32_nodes=tuple(manifest.models[precision].get("fp32_nodes", ())),
            cuda=cuda,
            graph=cuda_graph,
            workspace_bytes=workspace_bytes,
            progress=lambda share, what: say(f"building the engine, {share:.0%} ({what})"),
        )
        began = time.perf_counter()
        with runtimes.open(model, runtime, settings) as session:
            load_ms = (time.perf_counter() - began) * 1e3
            on_device: Dict[str, List[int]] = {}
            samples = bench.measure(
                _stages(session, manifest),
                list(pictures),
                seconds=seconds,
                warmup_seconds=warmup_seconds,
                progress=say,
                after=lambda: _collect(session.device_ms, on_device),
            )
            accuracy = None
            if with_accuracy and runtime != "null":  # zeros from the null runtime have no accuracy
                accuracy = _accuracy(session, pictures, manifest, say)
            peak_rss_bytes = _peak_rss_bytes()  # before the check, which opens the model a second time
            checked, unchecked = _parity(session, model, pictures, manifest) if check else (None, ())
            description, told = session.description, session.warnings
    host, comparable = _host_accuracy(manifest, precision)
    delta = None
    if comparable and accuracy and host and None not in (accuracy.map50_95, host["map50_95"]):
        delta = accuracy.map50_95 - host["map50_95"]
    stages = {**samples.stages_ns, END_TO_END: samples.frames_ns, **on_device}
    summaries = {name: {**bench.summary(ns), "samples_ns": list(ns)} for name, ns in stages.items()}
    return BenchReport(
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        edgeprune_version=version(),
        bundle={
            "name": manifest.name,
            "sha256": bundle.sha256,
            "target": manifest.target,
            "key_fingerprint": bundle.key_fingerprint,
            "trusted": bundle.trusted,
        },
        precision=precision,
        model={"payload": payload.name, "sha256": payload.sha256, "size_bytes": payload.size_bytes},
        runtime={"name": runtime, "description": description, "threads": threads},
        environment=environment,
        settings={
            "seconds": seconds,
            "warmup_seconds_max": warmup_seconds,
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
        load_ms=load_ms,
        first_inference_ms=samples.first_ns["infer"] / 1e6,
        stages=summaries,
        fps_end_to_end=len(samples.frames_ns) / (samples.wall_ns / 1e9),
        fps_inference=1e3 / max(summaries["infer"]["p50_ms"], 1e-6),
        accuracy=accuracy,
        host_accuracy=host,
        map50_95_delta=delta,
        peak_rss_bytes=peak_rss_bytes,
        parity=None if checked is None else checked.to_json(),
        warnings=(
            *told,
            *unchecked,
            *_warnings(bundle, environment, samples, runtime, precision, accuracy is not None, comparable),
        ),
    )


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


def _stages(session, manifest: Manifest) -> Dict[str, Any]:
    """decode, pre, infer, post; what a later stage needs of an earlier one travels beside the picture."""
    classes, nms = len(manifest.classes), dict(manifest.nms)

    def decode(picture):
        return vision.decode(picture.data, picture.name)

    def pre(image):
        return vision.letterbox(image, manifest.imgsz)

    def infer(prepared):
        return session.infer(prepared[0]), prepared[1]

    def post(inferred):
        return inferred[1].undo(vision.detections(inferred[0], classes=classes, **nms))

    return {"decode": decode, "pre": pre, "infer": infer, "post": post}


def _collect(device_ms: Optional[Dict[str, float]], into: Dict[str, List[int]]) -> None:
    for name in DEVICE_STAGES if device_ms else ():
        into.setdefault(name, []).append(round(device_ms[name] * 1e6))


def _parity(session, model: bytes, pictures: EvaluationSet, manifest: Manifest):
    """(the Parity, no warnings), or (None, why it was not measured)."""
    if session.name == "null":
        return None, ("parity was not measured: runtime null runs no model",)
    few = list(pictures)[:_PARITY_PICTURES]
    inputs = (vision.letterbox(vision.decode(picture.data, picture.name), manifest.imgsz)[0] for picture in few)
    try:
        return parity.measure(session, model, inputs, len(manifest.classes)), ()
    except InputError as error:
        return None, (f"parity was not measured: {error}",)


def _accuracy(session, pictures: EvaluationSet, manifest: Manifest, say) -> Accuracy:
    accuracy, _ = evaluate(
        session,
        pictures,
        imgsz=manifest.imgsz,
        classes=manifest.classes,
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


def _warnings(bundle, environment, samples, runtime, precision, judged, comparable) -> List[str]:
    found = environment.warnings()
    if not bundle.trusted:
        found.append(f"the bundle is signed by {bundle.key_fingerprint}, which is not trusted here")
    if not samples.settled:
        found.append("the timings did not settle in the warm-up: repeat on a quiet machine or with a longer --warmup")
    if runtime == "null":
        found.append("runtime null runs no model: these figures are the harness's own")
    if runtime == "ort" and precision.startswith("int8") and not int8_is_for_cpu(bundle.manifest):
        found.append("this INT8 model is in TensorRT's form, slower than FP32 on a CPU (--target cpu makes the CPU's)")
    bits = bundle.manifest.models[precision].get("weight_bits", 8)
    if runtime == "ort" and precision == "int8" and bits == 8 and environment.saturates:
        found.append("this CPU has no VNNI: 8-bit products saturate, so INT8 accuracy here may be lower than elsewhere")
    if judged and not comparable:
        found.append("the host states no accuracy on these very pictures: no delta")
    return found


def _peak_rss_bytes() -> Optional[int]:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
