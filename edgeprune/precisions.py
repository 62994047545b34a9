"""The reduced-precision files of a target: made, measured, and held to a limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from edgeprune_device import runtimes
from edgeprune_device.accuracy import Accuracy
from edgeprune_device.errors import GateError
from edgeprune_device.target import Target

from edgeprune import measure
from edgeprune import quantize as q


def make(
    fp32: onnx.ModelProto,
    pictures: Sequence[np.ndarray],
    target: Target,
    wanted: Sequence[str],
    score: Callable[[object], float],
    thresholds: Mapping[str, float] | None = None,
) -> tuple[dict[str, onnx.ModelProto], dict]:
    """The files besides FP32 that `target` takes and `wanted` (of fp16, int8) asks for.

    pictures: (1, 3, H, W) arrays to calibrate with. score: session -> mAP on pictures that were not calibrated with.
    thresholds: where the tensors were clipped in training (qat.py): then no calibration method is tried. They are of
    signed activations; a target with unsigned ones is calibrated as ever.
    Returns precision -> model, and what to say of how each was made.
    """
    names = [p for p in target.precisions if p != "fp32" and p.split("-")[0] in wanted]
    files: dict[str, onnx.ModelProto] = {}
    said: dict[str, dict] = {}
    if not names:
        return files, said
    ranges, methods = q.calibrate(fp32, pictures), tuple(q.METHODS)
    if thresholds is not None and target.int8_activations == "signed":
        ranges, methods = ranges.fixed(thresholds), ("qat",)
    if "fp16" in names:
        half = q.to_fp16(fp32, ranges)
        files["fp16"], said["fp16"] = half.model, half.to_json()
    if "int8" in names or "int8-fp16" in names:
        activations = target.int8_activations

        def build(method: str, **more) -> onnx.ModelProto:
            model = q.to_int8(fp32, ranges, method=method, activations=activations, **more)
            model = q.correct_bias(fp32, model, pictures[:16])
            q.check(model, activations=activations)
            return model

        choice = q.choose(build, lambda model: score(session(target, "int8", model)), methods)
        files["int8"] = choice.model
        share = round(q.int8_share(choice.model), 4)
        said["int8"] = {**choice.to_json(), "activations": activations, "share_of_macs": share}
        if "int8-fp16" in names:
            files["int8-fp16"] = build(choice.method, rest="fp16")
    return files, said


def session(target: Target, precision: str, model: onnx.ModelProto):
    """For a CPU target a file is measured as it will run; for a GPU target as it is written."""
    if precision == "fp32" or target.int8_activations == "unsigned":
        return runtimes.open(model.SerializeToString(), "ort")
    return measure.ReferenceSession(model)


def gate(measured: Mapping[str, Accuracy], max_drop: float) -> dict[str, float]:
    """What each precision loses against FP32, in absolute mAP50-95.

    Raises:
        GateError: one loses more than `max_drop`; the figures, the worst class and the small objects are in it.
    """
    reference = measured["fp32"]
    drops = {p: reference.map50_95 - a.map50_95 for p, a in measured.items() if p != "fp32"}
    failed = [
        f"{p} loses {d:.4f} mAP50-95 ({reference.map50_95:.4f} -> {measured[p].map50_95:.4f}; "
        f"{_worst(reference, measured[p])})"
        for p, d in drops.items()
        if d > max_drop
    ]
    if failed:
        raise GateError(f"{'; '.join(failed)}; the limit is --max-drop {max_drop:g}. No bundle was written")
    return {p: round(d, 6) for p, d in drops.items()}


def _worst(before: Accuracy, after: Accuracy) -> str:
    """The class that loses most, and what small objects lose."""
    pairs = zip(before.per_class, after.per_class)
    loss, name = max((b.map50_95 - a.map50_95, str(b.name)) for b, a in pairs if b.map50_95 is not None)
    text = f"most: {name} {-loss:+.4f}"
    if before.small_map50_95 is None or after.small_map50_95 is None:
        return text
    return f"{text}, small objects {after.small_map50_95 - before.small_map50_95:+.4f}"
