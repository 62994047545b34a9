"""Export and quantize one checkpoint, outside of a build."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
from edgeprune_device.errors import InputError
from edgeprune_device.files import write_atomic
from edgeprune_device.target import Target

from edgeprune import export, measure, precisions, samples
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
) -> tuple[dict[str, onnx.ModelProto], dict[str, str]]:
    """Precision -> model, and one line on each.

    Raises:
        GateError: the ONNX does not equal the model, or a precision loses more than `max_drop`.
    """
    fp32 = export.to_onnx(source.model, (imgsz, imgsz))
    if data is None:
        return {"fp32": fp32}, {"fp32": "parity and accuracy not measured (no --data)"}
    solve, select = samples.split(data.train, imgsz)
    pictures = [x[None].numpy() for x in samples.read(data, solve, imgsz).pictures]
    parity = export.parity(source.model, fp32, pictures[:8])
    parity.check()

    def score(session) -> float:
        found = measure.evaluate(session, data, select[:32], imgsz)[0].map50_95
        return float("nan") if found is None else found

    step(0.1, "quantizing")
    files, _ = precisions.make(fp32, pictures, target, wanted, score)
    files = {"fp32": fp32, **files}
    measured = {}
    for i, (name, model) in enumerate(files.items()):

        def shown(n, name=name, i=i):
            step((i + n / len(data.val)) / len(files), f"{name}: {n}/{len(data.val)} pictures")

        session = precisions.session(target, name, model)
        measured[name] = measure.evaluate(session, data, data.val, imgsz, shown)[0]
    precisions.gate(measured, max_drop)
    said = {name: f"mAP50-95 {a.map50_95:.4f} on {a.pictures} pictures" for name, a in measured.items()}
    said["fp32"] += f", equals PyTorch to {parity.max_box_px:.2g} px"
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
