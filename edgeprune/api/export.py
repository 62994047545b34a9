"""`ep.export`: a network as ONNX in every precision, each file checked for parity and accuracy drop."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from edgeprune_device.errors import InputError, reason
from edgeprune_device.files import write_atomic
from edgeprune_device.option import named
from edgeprune_device.progress import Progress, Say
from edgeprune_device.size import Size
from edgeprune_device.target import Target
from edgeprune_device.vision.accuracy import Accuracy, Matches
from typing_extensions import Unpack

from edgeprune.api.result import as_table
from edgeprune.api.source import Model, opened
from edgeprune.console.progress import Reporter
from edgeprune.console.text import number
from edgeprune.data import dataset, samples
from edgeprune.exporting import device_variant, nms, precisions
from edgeprune.exporting.parity import Parity, measure_parity
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.measuring.accuracy import evaluate, score
from edgeprune.measuring.sessions import Session
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.threads import ready
from edgeprune.options import ExportOptions, takes
from edgeprune.training import qat


@dataclass(frozen=True, repr=False)
class Exported:
    """The files of one export.

    Figures that need images are missing if the export had no data set.

    Attributes:
        files: {precision: ONNX file}, which stock Ultralytics opens.
        variants: {precision: device variant of that file}, which edgeprune's runtimes run on a GPU; empty for a target
            or an option `input` without variants.
        opsets: {precision: ONNX opset}.
        accuracy: {precision: accuracy on the validation images}, measured with the model as written.
        parity: difference between the FP32 file and the network.
        details: {precision: details of its quantization}, such as the calibration method, the share of MACs in INT8 and
            the layer fallbacks.
    """

    files: dict[str, Path]
    opsets: dict[str, int]
    accuracy: dict[str, Accuracy] = field(default_factory=dict)
    parity: Parity | None = None
    details: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, Path] = field(default_factory=dict)

    def _notes(self, name: str) -> list[str]:
        """The notes that follow a file's size in print."""
        if name not in self.accuracy:
            return ["parity and accuracy not measured (no data set)"]
        accuracy = self.accuracy[name]
        notes = [f"mAP50-95 {number(accuracy.map50_95, 4)} on {accuracy.pictures} images"]
        if name == "fp32" and self.parity:
            notes.append(f"equals PyTorch to {self.parity.max_box_px:.2g} px on {self.parity.over}")
        if name == next((n for n in self.files if n.startswith("int8")), None):
            how = self.details["int8"]
            notes.append(f"{how['share_of_macs']:.0%} of MACs in INT8, thresholds by {how['method']}")
            for layer in how["rescued"]:
                notes.append(f"\n  not in INT8: {layer['layer']} (output divergence {layer['disagreement']:.3f} alone)")
        return notes

    def __str__(self) -> str:
        lines = []
        for name, path in self.files.items():
            notes = ", ".join(self._notes(name)).replace(", \n", "\n")
            lines.append(f"{path}  {path.stat().st_size / 1e6:.1f} MB, opset {self.opsets[name]}, {notes}")
            if name in self.variants:
                lines.append(f"  device variant: {self.variants[name]}")
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


@takes(ExportOptions)
def export(model: Model, data: str | Path | None = None, **options: Unpack[ExportOptions]) -> Exported:
    """Write a simplified ONNX file with a fixed input shape, equivalent to the network.

    With `data`, also write FP16 and INT8 files.

    Args:
        model: the detector: a .pt file, an Ultralytics YOLO, its network, or the result of another verb.
        data: the data set. Its training images are used for parity and calibration, its validation images for mAP.
        options: see `ExportOptions`.

    Returns:
        The files and their figures, as `Exported`.

    Raises:
        InputError: an argument, the model or the data is invalid, or the folder cannot be written.
        GateError: the FP32 file does not equal the network, or a precision exceeds `max_drop`. Nothing is written.
    """
    target = Target.load(options["target"])
    source = opened(model, fused=True, head=options["head"])
    if data is None and set(options["precision"]) != {"fp32"}:
        raise InputError(
            f"{named('precision')}: FP16 and INT8 need images for calibration and measurement; give {named('data')}, "
            f"or only {named('precision', 'fp32')}"
        )
    reporter = ready(Reporter(quiet=options["quiet"]))
    images = None
    if data is not None:
        checked = dataset.load(data, task=source.task, strict=options["strict"], reporter=reporter)
        images = samples.fewer(checked, options["val_images"])
        dataset.check_names(images, source.names)
    shapes, out = None if images is None else images.shapes, options["out"]
    size = source.input_size(options["imgsz"], reporter.warn, shapes=shapes)
    with reporter.stage("export") as progress:
        models, made, parity = _made(source, images, size, target, options, progress, reporter.warn)
    folder = source.path.with_name(f"{source.path.stem}-onnx") if out is None else Path(out)
    files = _written(models, folder)
    variants = {}
    if device_variant.flies(options["input"], target):
        variants = _written({f"{n}.device": device_variant.of(model) for n, model in models.items()}, folder)
        variants = {name: variants[f"{name}.device"] for name in models}
    opsets = {n: next(o.version for o in m.opset_import if o.domain in ("", "ai.onnx")) for n, m in models.items()}
    if made is None:
        return Exported(files, opsets, variants=variants)
    accuracy = {name: judged.accuracy for name, judged in made.judged.items()}
    return Exported(files, opsets, accuracy, parity, made.details, variants)


def _made(
    source: Checkpoint,
    pictures: dataset.Dataset | None,
    size: Size,
    target: Target,
    options: ExportOptions,
    progress: Progress,
    warn: Say,
) -> tuple[dict[str, onnx.ModelProto], precisions.Made | None, Parity | None]:
    """Return ({precision: model}, precisions.Made, Parity); the last two are None without images."""
    given = qat.thresholds(source)
    fp32 = to_onnx(source.model, size)
    finish = nms.add if options["nms"] else lambda model: model
    finished = finish(fp32)  # a head that takes no NMS is refused before the slow steps
    if pictures is None:
        return {"fp32": finished}, None, None
    solve, select = samples.split(pictures.train, size)
    calibration = [x[None].numpy() for x in samples.read(pictures, solve, size).pictures]
    parity = measure_parity(source.model, fp32, calibration[:8])
    parity.check()
    total = len(pictures.val)

    def judge(name: str, session: Session) -> tuple[Accuracy, Matches]:
        place = target.precisions.index(name)

        def shown(n: int) -> None:
            progress(0.3 + 0.7 * (place + n / total) / len(target.precisions), f"{name}: {n}/{total} images")

        return evaluate(session, pictures, pictures.val, size, shown, warn=warn)

    made = precisions.make(
        fp32,
        calibration,
        precisions.PrecisionRequest(target, options["precision"], options["max_drop"], options["input"]),
        lambda session: score(session, pictures, select, size, warn),
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
        raise InputError(f"{folder}: cannot be written ({reason(error)})") from error
    return {
        name: write_atomic(folder / f"model.{name}.onnx", model.SerializeToString()) for name, model in models.items()
    }
