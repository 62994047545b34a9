"""`ep.prune`: remove channels from a network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edgeprune_device.target import Target

from edgeprune.api.result import Network, as_table
from edgeprune.api.source import Model, opened
from edgeprune.console.progress import Reporter
from edgeprune.data import dataset, samples
from edgeprune.measuring.accuracy import evaluate
from edgeprune.measuring.sessions import TorchSession
from edgeprune.model import checkpoint
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.count import Cost, count, widths
from edgeprune.model.head import NOTE, has_one_to_one
from edgeprune.model.threads import ready
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
        latency: the fitted latency model and the fraction of the latency kept; only for a latency budget.
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
            ("re-solved", f"{self.solved} convolutions, on pictures"),
        ]
        if self.latency is not None:
            fit, share = self.latency
            notes.append(("latency", f"{fit.full_ms:.1f} ms -> {share * fit.full_ms:.1f} ms predicted "
                          f"(median error {fit.error_median:.1%}; {fit.runtime})"))  # fmt: skip
        if self.accuracy is not None:
            a, b = ("not measured" if v is None else f"{v:.3f}" for v in self.accuracy)
            where = "" if self.seen else " that nothing was solved with"
            notes.append(("mAP50-95", f"{a} -> {b} before any training, on {self.pictures} training pictures{where}"))
            if has_one_to_one(self.checkpoint.model):
                notes.append(("mAP50-95 is of", NOTE))
        return notes

    def __str__(self) -> str:
        lines = [f"{name:<18} {a:>14,} -> {b:>14,}  ({b / a:.1%})" for name, a, b in self._rows]
        return "\n".join([*lines, *(f"{name:<18} {text}" for name, text in self._notes)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [(name, f"{a:,}", f"{b:,}", f"{b / a:.1%}") for name, a, b in self._rows]
        notes = [f"{name}: {text}" for name, text in self._notes]
        return as_table(("", "before", "after", "left"), rows, notes)


def prune(
    model: Model,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency_ratio: float | None = None,
    latency_ms: float | None = None,
    data: str | Path | None = None,
    criterion: str = "auto",
    imgsz: int | None = None,
    target: str = "jetson-orin",
    uniform: bool = False,
    portable: bool = False,
    quiet: bool = False,
) -> Pruned:
    """Remove the channels of least importance until the budget is met; `model` itself is not changed.

    Example: `ep.prune("best.pt", ratio=0.2, data="data.yaml").save("pruned.pt")`

    Exactly one of `ratio`, `macs`, `params`, `latency_ratio` and `latency_ms` is the budget.

    Args:
        model: a .pt file, an Ultralytics YOLO, its network, or the result of another verb. With `data` it must be a
            detector; without, it may be of any task.
        ratio: fraction of the prunable channels to remove, in [0, 1).
        macs: fraction of the multiply-accumulates to keep, in (0, 1].
        params: fraction of the parameters to keep, in (0, 1].
        latency_ratio: fraction of the latency to keep, measured on this machine.
        latency_ms: latency of one image, ms, measured on this machine.
        data: the data set whose training images are used to choose channels and to compensate; None: batch-norm scales
            choose, and nothing is compensated.
        criterion: energy, bn_scale, l1, l2, lamp, taylor, percentile, random, module:function, or auto (energy with
            `data`, else bn_scale).
        imgsz: network input, px; None: the size that the weights were trained at.
        target: name of the target, whose channel multiple the channel counts are rounded to.
        uniform: remove the same share of every group.
        portable: keep only widths that Ultralytics' YAML can express.
        quiet: print warnings only.

    Returns:
        The pruned network and its figures, as `Pruned`.

    Raises:
        InputError: an argument, the model or the data is invalid, or the budget cannot be met.
        GateError: surgery is not exact.
    """
    asked = Budget.asked(
        ratio=ratio, macs=macs, params=params, latency_ratio=latency_ratio, latency_ms=latency_ms
    )  # fmt: skip
    criterion = criteria.resolve(criterion, pictures=data is not None)
    multiple = Target.load(target).channel_multiple
    reporter = ready(Reporter(quiet=quiet))
    source = opened(model, checkpoint.TASKS if data is None else ("detect",))
    imgsz = source.input_size(imgsz)
    features = solve = select = None
    if data is not None:
        pictures = dataset.load(data)
        dataset.check_names(pictures, source.names)
        solve, select = samples.split(pictures.train, imgsz)
        features = samples.read(pictures, solve, imgsz)
    else:
        reporter.say(f"no --data: chosen by {criterion}, nothing compensated; accuracy not measured")
    with reporter.stage("prune") as progress:
        budget, latency, _ = measured_budget(asked, source.model, imgsz, multiple, progress)
        ask = PruneRequest(budget, multiple, imgsz, uniform, portable, latency)
        cut = prune_network(source.model, criterion=criterion, ask=ask, samples=features, progress=progress)
    accuracy = None
    if data is not None:
        with reporter.stage("measure"):
            accuracy = tuple(
                evaluate(TorchSession(m, imgsz), pictures, select, imgsz)[0].map50_95
                for m in (source.model, cut.model)
            )
    # The name that the command gives its file, so that its export does not overwrite the original's.
    path = source.path.with_name(f"{source.path.stem}-pruned.pt")
    result = checkpoint.of_network(cut.model, path, source.extra.get("train_args") or {}, checkpoint.TASKS)
    full, left = widths(source.model), widths(cut.model)
    return Pruned(
        checkpoint=result,
        plan=cut.plan,
        before=count(source.model, (imgsz, imgsz)),
        after=count(cut.model, (imgsz, imgsz)),
        file_bytes=tuple(len(checkpoint.to_bytes(m, source)) for m in (source.model, cut.model)),
        layers={name: (full[name], left[name]) for name in full},
        solved=cut.solved,
        oracle=cut.oracle,
        accuracy=accuracy,
        pictures=None if select is None else len(select),
        seen=bool(select and set(select) & set(solve)),
        latency=None if latency is None else (latency, budget.value),
    )
