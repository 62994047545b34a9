"""ep.prune: remove channels for real."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edgeprune_device.target import Target

from edgeprune import checkpoint, criteria, dataset, measure, pruning, samples
from edgeprune import head as heads
from edgeprune.api.result import Network, as_table
from edgeprune.api.source import Model, opened
from edgeprune.budget import Budget
from edgeprune.checkpoint import Checkpoint
from edgeprune.count import Cost, count, widths
from edgeprune.latency import Latency
from edgeprune.plan import PrunePlan
from edgeprune.progress import Reporter
from edgeprune.threads import use_all_cores


@dataclass(frozen=True, repr=False)
class Pruned(Network):
    """A network after the cut, before any training.

    checkpoint: the network; plan: what each layer keeps; before, after: its cost; file_bytes: of both as stripped
    checkpoints; layers: {convolution: (channels before, after)}; solved: convolutions re-solved on pictures; oracle:
    relative difference between surgery alone and masking, in float64; accuracy: mAP50-95 (before, after) on `pictures`
    training pictures, which were solved with only where `seen` is true; latency: what a latency budget was solved by.
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
            if heads.has_one_to_one(self.checkpoint.model):
                notes.append(("mAP50-95 is of", heads.NOTE))
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
    """Remove the channels that cost least, to one budget; `model` itself is not changed.

    Example: `ep.prune("best.pt", ratio=0.2, data="data.yaml").save("pruned.pt")`

    Args:
        ratio: fraction of the prunable channels to remove; macs, params, latency_ratio: fraction to keep;
            latency_ms: milliseconds a picture may take on this machine. One of them.
        data: training pictures to choose and to re-solve with; without any, batch-norm scales choose, and every task
            is taken, not only detectors.
        criterion: energy, bn_scale, l1, l2, lamp, taylor, percentile, random, module:function, or auto.
        imgsz: pixels; by default what the weights were trained at.
        target: whose multiples the channel counts are rounded to.
        uniform: the same share of every layer; portable: only widths that Ultralytics' YAML can say.

    Raises:
        InputError: bad arguments, model or data, or a budget out of reach. GateError: surgery is not exact.
    """
    asked = Budget.asked(
        ratio=ratio, macs=macs, params=params, latency_ratio=latency_ratio, latency_ms=latency_ms
    )  # fmt: skip
    criterion = criteria.resolve(criterion, pictures=data is not None)
    multiple = Target.load(target).channel_multiple
    reporter = Reporter(quiet=quiet)
    use_all_cores()
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
    with reporter.stage("prune") as step:
        budget, latency, _ = pruning.measured(asked, source.model, imgsz, multiple, step)
        ask = pruning.Ask(budget, multiple, imgsz, uniform, portable, latency)
        cut = pruning.prune(source.model, criterion=criterion, ask=ask, samples=features, step=step)
    accuracy = None
    if data is not None:
        with reporter.stage("measure"):
            accuracy = tuple(
                measure.evaluate(measure.TorchSession(m, imgsz), pictures, select, imgsz)[0].map50_95
                for m in (source.model, cut.model)
            )
    # Named as the command names its file: an export of it does not lie where that of the original lies.
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
