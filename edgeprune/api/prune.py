"""`ep.prune`: remove channels from a network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from edgeprune_device.option import named
from edgeprune_device.progress import Say
from edgeprune_device.size import Size
from edgeprune_device.target import Target
from torch import nn
from typing_extensions import Unpack

from edgeprune.api.result import Network, as_table
from edgeprune.api.source import Model, opened
from edgeprune.console.progress import Reporter
from edgeprune.data import dataset, samples
from edgeprune.measuring.accuracy import evaluate
from edgeprune.measuring.sessions import TorchSession
from edgeprune.model import checkpoint, head
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.count import Cost, count, widths
from edgeprune.model.device import choose
from edgeprune.model.threads import ready
from edgeprune.options import PruneOptions, budget, takes
from edgeprune.pruning import criteria
from edgeprune.pruning.budget import Budget
from edgeprune.pruning.latency import Latency
from edgeprune.pruning.plan import PrunePlan
from edgeprune.pruning.prune import PruneRequest, measured_budget, prune_network


@dataclass(frozen=True, repr=False)
class Pruned(Network):
    """A network after surgery and compensation, before any training.

    Attributes:
        checkpoint: the network.
        plan: the channels that each group keeps.
        before: cost of the original.
        after: cost of the pruned network.
        file_bytes: size of the stripped checkpoint (before, after), bytes.
        layers: {convolution: (channels before, after)}.
        solved: number of convolutions that were compensated on images.
        oracle: relative difference between the outputs of surgery alone and of masking, in float64.
        accuracy: mAP50-95 (before, after) on `pictures` training images; None without data.
        pictures: number of training images that `accuracy` was measured on.
        seen: whether some of those images were also used for compensation.
        latency: the fitted latency model and the kept fraction of the latency; only for a latency budget.
    """

    checkpoint: Checkpoint
    plan: PrunePlan
    before: Cost
    after: Cost
    file_bytes: tuple[int, int]
    layers: dict[str, tuple[int, int]]
    solved: int
    oracle: float
    accuracy: tuple[float | None, float | None] | None = None
    pictures: int | None = None
    seen: bool = False
    latency: tuple[Latency, float] | None = None

    @cached_property
    def _rows(self) -> list[tuple[str, int, int]]:
        return [
            ("prunable channels", self.plan.prunable, self.plan.prunable - self.plan.removed),
            ("parameters", self.before.parameters, self.after.parameters),
            ("MACs", self.before.macs, self.after.macs),
            ("file bytes", *self.file_bytes),
        ]

    @cached_property
    def _notes(self) -> list[tuple[str, str]]:
        notes = [
            ("chosen by", self.plan.criterion),
            ("refitted", f"{self.solved} convolutions, on images"),
        ]
        if self.latency is not None:
            fit, share = self.latency
            notes.append(("latency", f"{fit.full_ms:.1f} ms -> {share * fit.full_ms:.1f} ms predicted "
                          f"(median error {fit.error_median:.1%}; {fit.runtime})"))  # fmt: skip
        if self.accuracy is not None:
            a, b = ("not measured" if v is None else f"{v:.3f}" for v in self.accuracy)
            where = "" if self.seen else " not used for compensation"
            notes.append(("mAP50-95", f"{a} -> {b} before any training, on {self.pictures} training images{where}"))
            if one := head.of_network(self.checkpoint.model):
                notes.append(("measured with", head.NOTES[one]))
        return notes

    def __str__(self) -> str:
        lines = [f"{name:<18} {a:>14,} -> {b:>14,}  ({b / a:.1%})" for name, a, b in self._rows]
        return "\n".join([*lines, *(f"{name:<18} {text}" for name, text in self._notes)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [(name, f"{a:,}", f"{b:,}", f"{b / a:.1%}") for name, a, b in self._rows]
        notes = [f"{name}: {text}" for name, text in self._notes]
        return as_table(("", "before", "after", "left"), rows, notes)


@dataclass(frozen=True)
class _Images:
    """The training images of a pruning.

    Attributes:
        data: the data set.
        imgsz: size of the network's input, px.
        solve: images to rank channels and to compensate with.
        select: images to measure accuracy on; disjoint from `solve` if there are enough.
        features: the images and labels of `solve`, as the network takes them, on the device.
    """

    data: dataset.Dataset
    imgsz: Size
    solve: list[Path]
    select: list[Path]
    features: samples.Samples

    @classmethod
    def of(cls, images: dataset.Dataset, source: Checkpoint, imgsz: Size, device: torch.device) -> _Images:
        dataset.check_names(images, source.names)
        solve, select = samples.split(images.train, imgsz)
        return cls(images, imgsz, solve, select, samples.read(images, solve, imgsz).to(device))

    def map50_95(self, model: nn.Module, warn: Say) -> float | None:
        session = TorchSession(model, self.imgsz, self.features.pictures.device)
        return evaluate(session, self.data, self.select, self.imgsz, warn=warn)[0].map50_95


@takes(PruneOptions)
def prune(model: Model, **options: Unpack[PruneOptions]) -> Pruned:
    """Remove the channels of least importance until the budget is met; `model` itself is not changed.

    Example: `ep.prune("best.pt", ratio=0.2, data="data.yaml").save("pruned.pt")`

    Exactly one of `ratio`, `macs`, `params`, `latency_ratio` and `latency_ms` is the budget.

    Args:
        model: a .pt file, an Ultralytics YOLO, its network, or the result of another verb. With `data` its
            task must be detect or obb; without, also segment, pose or classify.
        options: see `PruneOptions`.

    Returns:
        The pruned network and its figures, as `Pruned`.

    Raises:
        InputError: an argument, the model or the data is invalid, or the budget cannot be met.
        GateError: surgery is not exact.
    """
    data = options["data"]
    asked = Budget.asked(**budget(options))
    criterion = criteria.resolve(options["criterion"], pictures=data is not None)
    multiple = Target.load(options["target"]).channel_multiple
    reporter = ready(Reporter(quiet=options["quiet"]))
    source = opened(model, checkpoint.TASKS if data is None else checkpoint.SUPPORTED, head=options["head"])
    device = choose(options["device"])
    judges = None
    if data is not None:
        judges = dataset.load(data, task=source.task, strict=options["strict"], reporter=reporter)
    shapes = None if judges is None else judges.shapes
    imgsz = source.input_size(options["imgsz"], reporter.warn, shapes=shapes)
    images = None
    if judges is not None:
        images = _Images.of(judges, source, imgsz, device.torch)
        reporter.say(f"device: {device.description}")
    if images is None:
        reporter.say(f"no {named('data')}: channels are ranked by {criterion}; nothing is compensated or measured")
    with reporter.stage("prune") as progress:
        limit, latency, _ = measured_budget(asked, source.model, imgsz, multiple, progress)
        request = PruneRequest(limit, multiple, imgsz, options["uniform"], options["portable"], latency)
        samples = None if images is None else images.features
        cut = prune_network(source.model, criterion=criterion, ask=request, samples=samples, progress=progress)
    accuracy = None
    if images is not None:
        with reporter.stage("measure"):
            before, after = (images.map50_95(model, reporter.warn) for model in (source.model, cut.model))
            accuracy = before, after
    # The command uses this name for its file, so that a later export does not overwrite the original's.
    path = source.path.with_name(f"{source.path.stem}-pruned.pt")
    result = checkpoint.of_network(cut.model, path, source.extra.get("train_args") or {}, checkpoint.TASKS)
    full, left = widths(source.model), widths(cut.model)
    return Pruned(
        checkpoint=result,
        plan=cut.plan,
        before=count(source.model, imgsz),
        after=count(cut.model, imgsz),
        file_bytes=(len(checkpoint.to_bytes(source.model, source)), len(checkpoint.to_bytes(cut.model, source))),
        layers={name: (full[name], left[name]) for name in full},
        solved=cut.solved,
        oracle=cut.oracle,
        accuracy=accuracy,
        pictures=None if images is None else len(images.select),
        seen=images is not None and bool(set(images.select) & set(images.solve)),
        latency=None if latency is None else (latency, limit.value),
    )
