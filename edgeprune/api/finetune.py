"""`ep.finetune`: train a network further without changing its architecture."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from edgeprune_device.errors import InputError
from edgeprune_device.files import check_writable
from edgeprune_device.vision.accuracy import Accuracy

from edgeprune.api.result import Network, as_table
from edgeprune.api.source import Model, as_file
from edgeprune.console.progress import Reporter
from edgeprune.data import dataset
from edgeprune.measuring.accuracy import evaluate
from edgeprune.measuring.sessions import ReferenceSession, TorchSession
from edgeprune.model import checkpoint
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.count import count
from edgeprune.model.head import NOTE, has_one_to_one
from edgeprune.model.threads import ready
from edgeprune.pruning.sparsity import SMALL, count_small
from edgeprune.training import qat as rounding
from edgeprune.training import tracking
from edgeprune.training.finetune import Progress, TrainingSettings, finetune_network


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
        batch: images a step.
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
    batch: int
    lr: float
    int8: tuple[float | None, float | None] | None = None
    best_epoch: int | None = None
    small_scales: tuple[tuple[int, int], tuple[int, int]] | None = None

    @property
    def path(self) -> Path:
        """The file that the network was written to, or is named after."""
        return self.checkpoint.path

    def _told(self) -> list[str]:
        notes = []
        for name, (small, scales) in zip(("before", "after"), self.small_scales or ()):
            notes.append(
                f"{name:<7} {small:,} of {scales:,} prunable scales below {SMALL:g} of the layer's largest"
            )
        best = "" if self.best_epoch is None else f" (the best was epoch {self.best_epoch})"
        if has_one_to_one(self.checkpoint.model):
            notes.append(f"mAP50-95 is of {NOTE}")
        many = "s" * (self.epochs != 1)
        notes.append(f"{self.epochs} epoch{many}{best}, {self.steps} steps of {self.batch} pictures, lr {self.lr:g}")
        return notes

    def __str__(self) -> str:
        lines = []
        for i, (name, accuracy) in enumerate((("before", self.before), ("after", self.after))):
            rounded = f", INT8 {self.int8[i]:.4f}" if self.int8 else ""
            lines.append(f"{name:<7} {self.parameters:>10,} parameters  mAP50-95 {accuracy.map50_95:.4f}{rounded}")
        return "\n".join([*lines, *self._told()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        figures = (("mAP50-95", "map50_95"), ("mAP50", "map50"), ("mAP50-95 of small objects", "small_map50_95"))
        rows = []
        for title, key in figures:
            a, b = getattr(self.before, key), getattr(self.after, key)
            known = a is not None and b is not None
            cells = (f"{a:.4f}", f"{b:.4f}", f"{round(b - a, 4) + 0.0:+.4f}") if known else ("not measured",) * 3
            rows.append((title, *cells))
        on = f"on {self.after.pictures} validation pictures, {self.after.boxes} boxes"
        return as_table(("", "before", "after", "change"), rows, [on, *self._told()])


def finetune(
    model: Model,
    data: str | Path,
    *,
    epochs: int = 10,
    batch: int = 4,
    lr: float = 1e-4,
    imgsz: int | None = None,
    device: str = "cpu",
    workers: int = 0,
    seed: int = 0,
    patience: int = 0,
    distill: Model | None = None,
    sparsity: float = 0.0,
    qat: int = 0,
    out: str | Path | None = None,
    quiet: bool = False,
) -> Finetuned:
    """Train `model` further on `data`; a pruned network keeps its channels.

    Args:
        model: the detector: a .pt file, an Ultralytics YOLO, its network, or the result of another verb. It is not
            changed.
        data: the data set to train and to measure on.
        epochs: passes over the training images.
        batch: images a step; halved when memory runs out.
        lr: learning rate: AdamW, 100 steps of warm-up, cosine to 1 %. With `qat`, a tenth of it is used.
        imgsz: network input, px; None: the size that the weights were trained at.
        device: "cpu", the number of a GPU, or several: "0,1".
        workers: data loading processes.
        seed: seed of the training.
        patience: stop after this number of epochs without a better figure on a tenth of the training images, which is
            held back; 0: never.
        distill: teacher for distillation: the unpruned original.
        sparsity: Network Slimming, before pruning: each step moves every prunable batch-norm scale towards zero by this
            value times the schedule's fraction of `lr`; 0: off. At most `lr`.
        qat: train this number of epochs, instead of `epochs`, with the rounding of the signed INT8 file; 0: off.
        out: file of the checkpoint (.pt); an interrupted run with the same settings continues. None: in memory only.
        quiet: print warnings only.

    Returns:
        The tuned network and its figures, as `Finetuned`.

    Raises:
        InputError: an argument, the model or the data is invalid, the device does not exist, or memory is insufficient.
    """
    if qat < 0:
        raise InputError(f"--qat {qat}: give 1 epoch or more, or leave it out")
    if out is not None:
        out = Path(out)
        if out.suffix != ".pt":
            raise InputError(f"--out {out}: a checkpoint ends in .pt")
        check_writable(out)
    reporter = ready(Reporter(quiet=quiet))
    with as_file(model) as weights, tempfile.TemporaryDirectory(prefix="edgeprune-") as scratch:
        source = checkpoint.load(weights)
        pictures = dataset.load(data)
        dataset.check_names(pictures, source.names)
        size = source.input_size(imgsz)
        settings = TrainingSettings(epochs, batch, lr, size, device, workers, seed, patience, sparsity)
        if qat:
            settings = replace(settings, epochs=qat, lr=lr * rounding.RATE, qat=True)
            rounding.thresholds(source)  # for the figure before training; damaged ones are refused now
        file = out or Path(scratch) / f"{weights.stem}-tuned.pt"
        work = file.with_name(f".{file.stem}-training")  # an interrupted run of the same settings continues from here
        with reporter.stage("finetune") as progress:

            def shown(p: Progress) -> None:
                done = (p.epoch - 1 + p.step / p.steps) / p.epochs
                progress(done, f"epoch {p.epoch}/{p.epochs}  loss {p.loss:.3f}")

            with contextlib.nullcontext() if distill is None else as_file(distill) as teacher:
                result = finetune_network(
                    weights, pictures, file, settings, work, teacher=teacher, on_step=shown, tracked=out is not None
                )
        tuned = checkpoint.load(file)
        if out is None:
            tuned.path = Path(file.name)
    found, rounded = [], []
    for name, state in (("before", source), ("after", tuned)):
        with reporter.stage(f"measure {name}") as progress:
            total = len(pictures.val)

            def told(n, progress=progress, total=total):
                progress(n / total, f"{n}/{total} pictures")

            session = TorchSession(state.model, size)
            found.append(evaluate(session, pictures, pictures.val, size, told)[0])
            if qat:
                session = ReferenceSession(rounding.int8(state, pictures, size))
                rounded.append(evaluate(session, pictures, pictures.val, size, told)[0].map50_95)
    if out is not None:
        figures = {name: {"map50_95": a.map50_95} for name, a in zip(("before", "after"), found)}
        for line in tracking.report(work, {**figures, "training": result}, [out]):
            reporter.say(line)
        shutil.rmtree(work, ignore_errors=True)
    return Finetuned(
        checkpoint=tuned,
        before=found[0],
        after=found[1],
        parameters=count(tuned.model, (size, size)).parameters,
        epochs=result["epochs"],
        steps=result["steps"],
        batch=result["batch"],
        lr=settings.lr,
        int8=tuple(rounded) if qat else None,
        best_epoch=result.get("best_epoch") if patience else None,
        small_scales=tuple(count_small(s.model) for s in (source, tuned)) if sparsity else None,
    )
