"""Export and quantize one checkpoint, outside of a build."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
from edgeprune_device.errors import InputError
from edgeprune_device.files import write_atomic
from edgeprune_device.target import Target

from edgeprune import exporting, measure, nms, precisions, qat, samples
from edgeprune.checkpoint import Checkpoint
from edgeprune.dataset import Dataset


def run(
    source: Checkpoint,
    data: Dataset | None,
    imgsz: int,
    target: Target,
    wanted: Sequence[str],
    max_drop: float,
    step: Callable[[float, str], None],
    *,
    suppress: bool = False,
) -> tuple[dict[str, onnx.ModelProto], dict[str, str]]:
    """Precision -> model, and one line on each. suppress: with NMS inside (nms.py).

    Raises:
        InputError: NMS for a one-to-one head, or a checkpoint with damaged scales.
        GateError: the ONNX does not equal the model, or a precision loses more than `max_drop`.
    """
    given = qat.thresholds(source)
    fp32 = exporting.to_onnx(source.model, (imgsz, imgsz))
    finish = nms.add if suppress else lambda model: model
    finished = finish(fp32)  # a head that takes no NMS is told before anything long starts
    if data is None:
        return {"fp32": finished}, {"fp32": "parity and accuracy not measured (no --data)"}
    solve, select = samples.split(data.train, imgsz)
    pictures = [x[None].numpy() for x in samples.read(data, solve, imgsz).pictures]
    parity = exporting.parity(source.model, fp32, pictures[:8])
    parity.check()

    def judge(name: str, session):
        place = target.precisions.index(name)

        def shown(n):
            share = (place + n / len(data.val)) / len(target.precisions)
            step(0.3 + 0.7 * share, f"{name}: {n}/{len(data.val)} pictures")

        return measure.evaluate(session, data, data.val, imgsz, shown)

    made = precisions.make(
        fp32,
        pictures,
        target,
        wanted,
        max_drop,
        lambda session: measure.score(session, data, select, imgsz),
        judge,
        thresholds=given,
        finish=finish,
        step=lambda what: step(0.1, what),
    )
    files = {"fp32": finished, **made.files}
    said = {
        name: f"mAP50-95 {j.accuracy.map50_95:.4f} on {j.accuracy.pictures} pictures" for name, j in made.judged.items()
    }
    said["fp32"] += f", equals PyTorch to {parity.max_box_px:.2g} px"
    if "int8" in made.said:
        how = made.said["int8"]
        name = next(name for name in made.files if name.startswith("int8"))
        said[name] += f", {how['share_of_macs']:.0%} of MACs in INT8, thresholds by {how['method']}"
        for layer in how["rescued"]:
            said[name] += f"\n  not in INT8: {layer['layer']} (disagreement {layer['disagreement']:.3f} alone)"
    return files, said


def write(files: dict[str, onnx.ModelProto], folder: Path) -> dict[str, Path]:
    """model.<precision>.onnx in `folder`, made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({(error.strerror or str(error)).lower()})") from error
    return {
        name: write_atomic(folder / f"model.{name}.onnx", model.SerializeToString()) for name, model in files.items()
    }
