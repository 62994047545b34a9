"""ep.finetune: train a network further, its architecture kept."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from edgeprune_device.accuracy import Accuracy
from edgeprune_device.errors import InputError
from edgeprune_device.files import check_writable

from edgeprune import checkpoint, dataset, finetuning, measure, tracking
from edgeprune import head as heads
from edgeprune import qat as rounding
from edgeprune import sparsity as slimming
from edgeprune.api.result import Network, as_table
from edgeprune.api.source import Model, as_file
from edgeprune.checkpoint import Checkpoint
from edgeprune.count import count
from edgeprune.progress import Reporter


@dataclass(frozen=True, repr=False)
class Finetuned(Network):
    """A network after fine-tuning.

    checkpoint: the network; before, after: its accuracy on the validation pictures; int8: mAP50-95 (before, after) of
    the INT8 file, of a training with `qat`; parameters, epochs, steps (of the optimiser), batch, lr: what was done;
    best_epoch: with patience; small_scales: ((small, all) before, after), of a training with `sparsity`.
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
        """The file it was written to, or is named after."""
        return self.checkpoint.path

    def _told(self) -> list[str]:
        notes = []
        for name, (small, scales) in zip(("before", "after"), self.small_scales or ()):
            notes.append(
                f"{name:<7} {small:,} of {scales:,} prunable scales below {slimming.SMALL:g} of the layer's largest"
            )
        best = "" if self.best_epoch is None else f" (the best was epoch {self.best_epoch})"
        if heads.has_one_to_one(self.checkpoint.model):
            notes.append(f"mAP50-95 is of {heads.NOTE}")
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
    """Train `model` further on `data`; a pruned network stays as small as it is.

    Args:
        lr: AdamW, 100 steps of warm-up, cosine to 1 %; with qat a tenth of it.
        device: cpu, a GPU's number, or several: "0,1".
        patience: stop after so many epochs without a better figure on a tenth of the training pictures (0: never).
        distill: learn from this network's answers, too: the unpruned original.
        sparsity: Network Slimming's, before a cut: what each step takes from every prunable batch-norm scale.
        qat: train so many epochs with the rounding of the signed INT8 file, instead of `epochs`.
        out: the checkpoint's file; an interrupted run of the same settings goes on. None: in memory only.

    Raises:
        InputError: bad arguments, model or data, no such device, or not enough memory.
    """
    reporter = Reporter(quiet=quiet)
    if qat < 0:
        raise InputError(f"--qat {qat}: give 1 epoch or more, or leave it out")
    if out is not None:
        out = Path(out)
        if out.suffix != ".pt":
            raise InputError(f"--out {out}: a checkpoint ends in .pt")
        check_writable(out)
    with as_file(model) as weights, tempfile.TemporaryDirectory(prefix="edgeprune-") as scratch:
        source = checkpoint.load(weights)
        pictures = dataset.load(data)
        dataset.check_names(pictures, source.names)
        size = source.input_size(imgsz)
        settings = finetuning.Settings(epochs, batch, lr, size, device, workers, seed, patience, sparsity)
        if qat:
            settings = replace(settings, epochs=qat, lr=lr * rounding.RATE, qat=True)
            rounding.thresholds(source)  # for the figure before; damaged ones are told before the training
        file = out or Path(scratch) / f"{weights.stem}-tuned.pt"
        work = file.with_name(f".{file.stem}-training")  # an interrupted run of the same settings goes on from here
        with reporter.stage("finetune") as step:

            def shown(p: finetuning.Progress) -> None:
                done = (p.epoch - 1 + p.step / p.steps) / p.epochs
                step(done, f"epoch {p.epoch}/{p.epochs}  loss {p.loss:.3f}")

            with contextlib.nullcontext() if distill is None else as_file(distill) as teacher:
                result = finetuning.finetune(
                    weights, pictures, file, settings, work, teacher=teacher, on_step=shown, tracked=out is not None
                )
        tuned = checkpoint.load(file)
        if out is None:
            tuned.path = Path(file.name)
    found, rounded = [], []
    for name, state in (("before", source), ("after", tuned)):
        with reporter.stage(f"measure {name}") as step:
            total = len(pictures.val)

            def told(n, step=step, total=total):
                step(n / total, f"{n}/{total} pictures")

            session = measure.TorchSession(state.model, size)
            found.append(measure.evaluate(session, pictures, pictures.val, size, told)[0])
            if qat:
                session = measure.ReferenceSession(rounding.int8(state, pictures, size))
                rounded.append(measure.evaluate(session, pictures, pictures.val, size, told)[0].map50_95)
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
        small_scales=tuple(slimming.count_small(s.model) for s in (source, tuned)) if sparsity else None,
    )
