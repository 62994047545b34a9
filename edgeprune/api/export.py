"""`ep.export`: a network as ONNX in every precision, compared with the network and held to an accuracy drop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from edgeprune_device.errors import InputError
from edgeprune_device.files import write_atomic
from edgeprune_device.hint import did_you_mean
from edgeprune_device.target import Target
from edgeprune_device.vision.accuracy import Accuracy

from edgeprune.api.result import as_table
from edgeprune.api.source import Model, opened
from edgeprune.console.progress import Reporter
from edgeprune.console.text import number
from edgeprune.data import dataset, samples
from edgeprune.exporting import nms, precisions
from edgeprune.exporting.parity import Parity, measure_parity
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.measuring.accuracy import evaluate, score
from edgeprune.model.threads import ready
from edgeprune.training import qat

PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True, repr=False)
class Exported:
    """The files of one export.

    Figures that need images are missing if the export had no data set.

    Attributes:
        files: {precision: ONNX file}.
        opsets: {precision: ONNX opset}.
        accuracy: {precision: accuracy on the validation images}, measured with the model as written.
        parity: difference between the FP32 file and the network.
        said: {precision: details of its quantization}, such as the calibration method, the share of MACs in INT8 and
            the layer fallbacks.
    """

    files: dict[str, Path]
    opsets: dict[str, int]
    accuracy: dict[str, Accuracy] = field(default_factory=dict)
    parity: Parity | None = None
    said: dict[str, Any] = field(default_factory=dict)

    def _notes(self, name: str) -> list[str]:
        """The notes that follow a file's size in print."""
        if name not in self.accuracy:
            return ["parity and accuracy not measured (no --data)"]
        found = self.accuracy[name]
        notes = [f"mAP50-95 {number(found.map50_95, 4)} on {found.pictures} pictures"]
        if name == "fp32" and self.parity:
            notes.append(f"equals PyTorch to {self.parity.max_box_px:.2g} px")
        if name == next((n for n in self.files if n.startswith("int8")), None):
            how = self.said["int8"]
            notes.append(f"{how['share_of_macs']:.0%} of MACs in INT8, thresholds by {how['method']}")
            for layer in how["rescued"]:
                notes.append(f"\n  not in INT8: {layer['layer']} (output divergence {layer['disagreement']:.3f} alone)")
        return notes

    def __str__(self) -> str:
        lines = []
        for name, path in self.files.items():
            said = ", ".join(self._notes(name)).replace(", \n", "\n")
            lines.append(f"{path}  {path.stat().st_size / 1e6:.1f} MB, opset {self.opsets[name]}, {said}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [
            (name, f"{path.stat().st_size / 1e6:.2f}", str(self.opsets[name]),
             number(self.accuracy[name].map50_95, 4) if name in self.accuracy else "not measured")
            for name, path in self.files.items()
        ]  # fmt: skip
        notes = [f"{name}: {note.strip()}" for name in self.files for note in self._notes(name)[1:]]
        return as_table(("", "MB", "opset", "mAP50-95"), rows, notes)


def export(
    model: Model,
    data: str | Path | None = None,
    *,
    precision: Sequence[str] = PRECISIONS,
    target: str = "jetson-orin",
    imgsz: int | None = None,
    max_drop: float = 0.003,
    nms: bool = False,
    out: str | Path | None = None,
    quiet: bool = False,
) -> Exported:
    """Write one simplified static ONNX file, equal to the network; with `data` also FP16 and INT8 files.

    Args:
        model: the detector: a .pt file, an Ultralytics YOLO, its network, or the result of another verb.
        data: the data set. Its training images are used for parity and calibration, its validation images for mAP.
        precision: precisions to make, of fp32, fp16 and int8.
        target: name of the target, which determines the files that a precision needs.
        imgsz: network input, px; None: the size that the weights were trained at.
        max_drop: limit of a precision's accuracy drop against FP32, absolute mAP50-95.
        nms: put NMS into the files, with fixed shapes and standard operators.
        out: folder of the files model.<precision>.onnx; None: <name of the weights>-onnx beside the weights.
        quiet: print warnings only.

    Returns:
        The files and their figures, as `Exported`.

    Raises:
        InputError: an argument, the model or the data is invalid, or the folder cannot be written.
        GateError: the FP32 file does not equal the network, or a precision exceeds `max_drop`. Nothing is written.
    """
    precision = precision.split(",") if isinstance(precision, str) else precision  # as on the command line
    unknown = set(precision) - set(PRECISIONS)
    if unknown:
        near = did_you_mean(min(unknown), PRECISIONS)
        raise InputError(f"--precision takes {', '.join(PRECISIONS)}: got {','.join(precision)} {near}".rstrip())
    device = Target.load(target)
    source = opened(model)
    pictures = dataset.load(data) if data is not None else None
    if pictures is None and set(precision) != {"fp32"}:
        raise InputError("FP16 and INT8 are calibrated and measured on pictures: give --data, or --precision fp32")
    if pictures is not None:
        dataset.check_names(pictures, source.names)
    size = source.input_size(imgsz)
    with ready(Reporter(quiet=quiet)).stage("export") as progress:
        models, made, parity = _made(source, pictures, size, device, precision, max_drop, nms, progress)
    folder = source.path.with_name(f"{source.path.stem}-onnx") if out is None else Path(out)
    files = _written(models, folder)
    opsets = {n: next(o.version for o in m.opset_import if o.domain in ("", "ai.onnx")) for n, m in models.items()}
    if made is None:
        return Exported(files, opsets)
    accuracy = {name: judged.accuracy for name, judged in made.judged.items()}
    return Exported(files, opsets, accuracy, parity, made.said)


def _made(source, pictures, size, target, wanted, max_drop, suppress, progress):
    """Return ({precision: model}, precisions.Made, Parity); the last two are None without images."""
    given = qat.thresholds(source)
    fp32 = to_onnx(source.model, (size, size))
    finish = nms.add if suppress else lambda model: model
    finished = finish(fp32)  # a head that takes no NMS is refused before the long work
    if pictures is None:
        return {"fp32": finished}, None, None
    solve, select = samples.split(pictures.train, size)
    calibration = [x[None].numpy() for x in samples.read(pictures, solve, size).pictures]
    parity = measure_parity(source.model, fp32, calibration[:8])
    parity.check()
    total = len(pictures.val)

    def judge(name: str, session):
        place = target.precisions.index(name)

        def shown(n):
            progress(0.3 + 0.7 * (place + n / total) / len(target.precisions), f"{name}: {n}/{total} pictures")

        return evaluate(session, pictures, pictures.val, size, shown)

    made = precisions.make(
        fp32,
        calibration,
        target,
        wanted,
        max_drop,
        lambda session: score(session, pictures, select, size),
        judge,
        thresholds=given,
        finish=finish,
        progress=lambda what: progress(0.1, what),
    )
    return {"fp32": finished, **made.files}, made, parity


def _written(models: dict[str, onnx.ModelProto], folder: Path) -> dict[str, Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({(error.strerror or str(error)).lower()})") from error
    return {
        name: write_atomic(folder / f"model.{name}.onnx", model.SerializeToString()) for name, model in models.items()
    }
