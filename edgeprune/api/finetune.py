"""`ep.finetune`: train a network further without changing its architecture."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from edgeprune_device.files import check_writable
from edgeprune_device.size import Size
from edgeprune_device.vision.accuracy import Accuracy
from typing_extensions import Unpack

from edgeprune.api.result import Network, as_table
from edgeprune.api.source import Model, as_file
from edgeprune.console.progress import Reporter
from edgeprune.data import dataset, samples
from edgeprune.measuring.accuracy import evaluate
from edgeprune.measuring.sessions import ReferenceSession, Session, TorchSession
from edgeprune.model import checkpoint, head
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.count import count
from edgeprune.model.device import choose
from edgeprune.model.threads import ready
from edgeprune.options import FinetuneOptions, takes
from edgeprune.pruning.sparsity import SMALL, count_small
from edgeprune.training import qat, tracking
from edgeprune.training.finetune import TrainingProgress, TrainingSettings, finetune_network


@dataclass(frozen=True, repr=False)
class Finetuned(Network):
    """A network after fine-tuning.

    Attributes:
        checkpoint: the network.
        before: accuracy on the validation images before training.
        after: accuracy on the validation images after training.
        parameters: number of parameters.
        epochs: epochs trained.
        steps: optimiser steps taken.
        batch: images per step; None if no epoch was trained.
        lr: learning rate.
        int8: mAP50-95 of the INT8 file (before, after); only with `qat`.
        best_epoch: the epoch that was kept; only with `patience`.
        small_scales: (small, all) prunable batch-norm scales before and after; only with `sparsity`.
    """

    checkpoint: Checkpoint
    before: Accuracy
    after: Accuracy
    parameters: int
    epochs: int
    steps: int
    batch: int | None
    lr: float
    int8: tuple[float | None, float | None] | None = None
    best_epoch: int | None = None
    small_scales: tuple[tuple[int, int], tuple[int, int]] | None = None

    @property
    def path(self) -> Path:
        """The file that the network was written to, or is named after."""
        return self.checkpoint.path

    def _notes(self) -> list[str]:
        notes = []
        for name, (small, scales) in zip(("before", "after"), self.small_scales or ()):
            notes.append(f"{name:<7} {small:,} of {scales:,} prunable scales below {SMALL:g} of the layer's largest")
        best = "" if self.best_epoch is None else f" (the best was epoch {self.best_epoch})"
        if one := head.of_network(self.checkpoint.model):
            notes.append(f"mAP50-95 measured with {head.NOTES[one]}")
        many = "s" * (self.epochs != 1)
        notes.append(f"{self.epochs} epoch{many}{best}, {self.steps} steps of {self.batch} images, lr {self.lr:g}")
        return notes

    def __str__(self) -> str:
        lines = []
        for i, (name, accuracy) in enumerate((("before", self.before), ("after", self.after))):
            rounded = f", INT8 {self.int8[i]:.4f}" if self.int8 else ""
            lines.append(f"{name:<7} {self.parameters:>10,} parameters  mAP50-95 {accuracy.map50_95:.4f}{rounded}")
        return "\n".join([*lines, *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        figures = (("mAP50-95", "map50_95"), ("mAP50", "map50"), ("mAP50-95 of small objects", "small_map50_95"))
        rows = []
        for title, key in figures:
            a, b = getattr(self.before, key), getattr(self.after, key)
            known = a is not None and b is not None
            cells = (f"{a:.4f}", f"{b:.4f}", f"{round(b - a, 4) + 0.0:+.4f}") if known else ("not measured",) * 3
            rows.append((title, *cells))
        on = f"on {self.after.pictures} validation images, {self.after.boxes} boxes"
        return as_table(("", "before", "after", "change"), rows, [on, *self._notes()])


@takes(FinetuneOptions)
def finetune(
    model: Model, data: str | Path, *, distill: Model | None = None, **options: Unpack[FinetuneOptions]
) -> Finetuned:
    """Train `model` further on `data`; a pruned network keeps its channels.

    Without `out` the tuned network is in memory only.

    Args:
        model: the detector: a .pt file, an Ultralytics YOLO, its network, or the result of another verb. It is not
            changed.
        data: the data set to train and to measure on.
        distill: teacher for distillation: the unpruned original.
        options: see `FinetuneOptions`.

    Returns:
        The tuned network and its figures, as `Finetuned`.

    Raises:
        InputError: an argument, the model or the data is invalid, the device does not exist, or memory is insufficient.
    """
    out = None if options["out"] is None else Path(options["out"])
    if out is not None:
        check_writable(out)
    reporter = ready(Reporter(quiet=options["quiet"]))
    with as_file(model) as weights, tempfile.TemporaryDirectory(prefix="edgeprune-") as scratch:
        source = checkpoint.load(weights)
        images = dataset.load(data, task=source.task, strict=options["strict"], reporter=reporter)
        dataset.check_names(images, source.names)
        imgsz = source.input_size(options["imgsz"], reporter.warn, shapes=images.shapes)
        settings = _settings(options, imgsz)
        device = choose(options["device"])
        reporter.say(f"device: {device.description}")
        settings = replace(settings, device=device.text)
        if settings.qat:
            qat.thresholds(source)  # the figure before training needs them; damaged ones are refused now
        file = out or Path(scratch) / f"{weights.stem}-tuned.pt"
        work = file.with_name(f".{file.stem}-training")  # an interrupted run of the same settings continues from here
        with reporter.stage("finetune") as progress:

            def show(p: TrainingProgress) -> None:
                done = (p.epoch - 1 + p.step / p.steps) / p.epochs
                progress(done, f"epoch {p.epoch}/{p.epochs}  loss {p.loss:.3f}")

            with contextlib.nullcontext() if distill is None else as_file(distill) as teacher:
                result = finetune_network(
                    weights,
                    images,
                    file,
                    settings,
                    work,
                    teacher=teacher,
                    on_step=show,
                    tracked=out is not None,
                    warn=reporter.warn,
                )
        tuned = checkpoint.load(file)
        if out is None:
            tuned.path = Path(file.name)
    before, after = (
        _measure(
            reporter, f"measure {name}", network, samples.fewer(images, options["val_images"]), settings, device.torch
        )
        for name, network in (("before", source), ("after", tuned))
    )
    if out is not None:
        figures = {name: {"map50_95": m.accuracy.map50_95} for name, m in (("before", before), ("after", after))}
        for line in tracking.report(work, {**figures, "training": result}, [out]):
            reporter.say(line)
        shutil.rmtree(work, ignore_errors=True)
    return Finetuned(
        checkpoint=tuned,
        before=before.accuracy,
        after=after.accuracy,
        parameters=count(tuned.model, imgsz).parameters,
        epochs=result["epochs"],
        steps=result["steps"],
        batch=result["batch"],
        lr=settings.lr,
        int8=(before.int8, after.int8) if settings.qat else None,
        best_epoch=result.get("best_epoch") if settings.patience else None,
        small_scales=(count_small(source.model), count_small(tuned.model)) if settings.sparsity else None,
    )


def _settings(options: FinetuneOptions, imgsz: Size) -> TrainingSettings:
    settings = TrainingSettings(
        options["epochs"], options["batch"], options["lr"], imgsz, options["device"], options["workers"],
        options["seed"], options["patience"], options["sparsity"],
    )  # fmt: skip
    epochs = options["qat"]
    return replace(settings, epochs=epochs, lr=settings.lr * qat.LR_SHARE, qat=True) if epochs else settings


class _Measured(NamedTuple):
    """The accuracy of a network, and the mAP50-95 of its INT8 file; None: not measured."""

    accuracy: Accuracy
    int8: float | None


def _measure(
    reporter: Reporter,
    title: str,
    network: Checkpoint,
    images: dataset.Dataset,
    settings: TrainingSettings,
    device: torch.device,
) -> _Measured:
    total, imgsz = len(images.val), settings.imgsz
    with reporter.stage(title) as progress:

        def judge(session: Session) -> Accuracy:
            def shown(n: int) -> None:
                progress(n / total, f"{n}/{total} images")

            return evaluate(session, images, images.val, imgsz, shown, warn=reporter.warn)[0]

        accuracy = judge(TorchSession(network.model, imgsz, device))
        int8 = judge(ReferenceSession(qat.int8(network, images, imgsz))).map50_95 if settings.qat else None
    return _Measured(accuracy, int8)
