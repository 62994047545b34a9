"""How much a network bears before any training: as a whole, budget by budget, and group by group.

The whole is cut and compensated for each of a ladder of budgets and measured on training pictures that nothing was
solved with; chosen in one round from one scoring, where `prune` takes three and keeps a little more. A group's
sensitivity is how far the predictions move when it alone gives `SHARE` of its channels and what reads them is re-solved
in closed form.

What is recommended is the largest cut that keeps `KEEP` of the uncut mAP50-95 before any training. That is a rule of
thumb, from what was measured on this project (docs/ratio.md, docs/own-data.md; benchmarks/results): YOLOv8n on HIT-UAV
kept 96 % at 76 % of its MACs and 92 % at 65 %, and both were back at the uncut figure or above it after 1 to 10 epochs;
on COCO it kept 90 to 93 % at 80 % of its MACs and 56 to 60 % at 65 %, and no training was tried. Below `COLLAPSE` too
little is left for a short fine-tuning.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from edgeprune_device.accuracy import Accuracy, Matches
from edgeprune_device.errors import InputError
from edgeprune_device.files import write_atomic
from torch import nn

from edgeprune import budget, criteria, distill, pruning, surgery
from edgeprune import cost as costs
from edgeprune.budget import Budget, Unit
from edgeprune.channels import Channels, trace
from edgeprune.compensate import RIDGES
from edgeprune.count import Cost, count
from edgeprune.features import Moments, Samples, moments
from edgeprune.plan import PrunePlan
from edgeprune.text import aligned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA_VERSION = 1
#: The budgets that are tried; a half step is added where the recommendation ends.
LADDERS = {
    "macs": (0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
    "params": (0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
    "ratio": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
}
#: Fraction of the uncut mAP50-95 that a short fine-tuning has brought back, and below which it has little to go on.
KEEP, COLLAPSE = 0.9, 0.5
#: The fraction of a group's channels that goes when it is cut alone, as near as the target's rounding allows.
SHARE = 0.375
#: Pictures on which the predictions are compared: 0.7 s a group for YOLOv8n at 320 px.
COMPARED = 16
_RESAMPLES = 500

Step = Callable[[float, str], None]
#: A network's accuracy on the pictures that judge, and the matches behind it.
Measure = Callable[[nn.Module], tuple[Accuracy, Matches]]


@dataclass(frozen=True)
class Rung:
    """One budget, cut and compensated. predicted_loss: the sum of the scores of what goes, in the criterion's unit;
    kept: mAP50-95 as a fraction of the uncut network's, interval: its 95 % bootstrap interval over pictures; None where
    the uncut network finds nothing."""

    budget: str
    value: float
    parameters: int
    macs: int
    channels: int
    removed: int
    predicted_loss: float
    map50: float | None
    map50_95: float | None
    kept: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Sensitivity:
    """One decision of a plan, cut alone. layers: the convolutions that make its channels; width, left: channels before
    and in the trial; macs: fraction of the network's MACs that make or read its channels; divergence: how far the
    predictions move, summed over a picture (`divergence`); None where rounding leaves nothing to try."""

    layers: tuple[str, ...]
    width: int
    left: int
    macs: float
    divergence: float | None


@dataclass(frozen=True)
class Advice:
    """recommended: the largest cut in an unbroken row from the smallest on that keeps `KEEP`; sure: the same by the
    lower end of the interval; collapse: the smallest cut that keeps less than `COLLAPSE`. None: there is none."""

    recommended: Rung | None
    sure: Rung | None
    collapse: Rung | None

    @classmethod
    def of(cls, rungs: list[Rung]) -> Advice:
        """rungs: from the smallest cut to the largest."""
        known = [r for r in rungs if r.kept is not None]
        collapse = next((r for r in known if r.kept < COLLAPSE), None)
        return cls(_last(known, lambda r: r.kept), _last(known, lambda r: r.interval[0]), collapse)

    def to_json(self) -> dict:
        named = {k: None if r is None else r.budget for k, r in vars(self).items()}
        return {**named, "keep": KEEP, "collapse_below": COLLAPSE}


def _last(rungs: list[Rung], of: Callable[[Rung], float]) -> Rung | None:
    good = None
    for rung in rungs:
        if of(rung) < KEEP:
            break
        good = rung
    return good


@dataclass(frozen=True, repr=False)
class Analysis:
    """What `analyze` found. uncut: cost and accuracy of the network as it came; rungs: from the smallest cut to the
    largest; unreached: budgets below what the floors allow; groups: in the order of the network; name: of the
    model."""

    name: str
    kind: str
    criterion: str
    multiple: int
    imgsz: int
    uncut: Cost
    accuracy: Accuracy
    rungs: tuple[Rung, ...]
    unreached: tuple[str, ...]
    groups: tuple[Sensitivity, ...]
    advice: Advice

    def __str__(self) -> str:
        return table(self)

    __repr__ = __str__

    def plot(self) -> Figure:
        """Accuracy against budget, and the sensitivity of every group, as a matplotlib Figure."""
        from edgeprune import chart

        return chart.figure(self)

    def save_plot(self, path: str | Path) -> Path:
        """The same as a PNG."""
        from edgeprune import chart

        return write_atomic(Path(path), chart.png(self))

    def _repr_html_(self) -> str:
        from edgeprune import chart

        picture = base64.b64encode(chart.png(self)).decode()
        text = html.escape(table(self))
        shown = f'<img alt="What the table says" style="max-width:100%" src="data:image/png;base64,{picture}">'
        return f'{shown}<pre style="overflow:auto">{text}</pre>'

    def to_json(self) -> dict:
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "kind": self.kind,
            "criterion": self.criterion,
            "channel_multiple": self.multiple,
            "imgsz": self.imgsz,
            "pictures": self.accuracy.pictures,
            "boxes": self.accuracy.boxes,
            "uncut": {
                **self.uncut.to_json(),
                "map50": self.accuracy.map50,
                "map50_95": self.accuracy.map50_95,
            },
            "rungs": [asdict(r) for r in self.rungs],
            "unreached": list(self.unreached),
            "groups": [asdict(g) for g in self.groups],
            "group_share": SHARE,
            "advice": self.advice.to_json(),
        }


def analyze(
    model: nn.Module,
    *,
    criterion: str,
    kind: str,
    multiple: int,
    imgsz: int,
    samples: Samples,
    judges: torch.Tensor,
    measure: Measure,
    name: str = "model",
    step: Step = lambda fraction, what: None,
) -> Analysis:
    """Try a ladder of budgets and every group; the network is scored once, and not changed.

    Args:
        kind: what the budgets count: macs, params or ratio.
        multiple: rounding of channel counts.
        samples: training pictures to score and to compensate with.
        judges: (N, 3, H, W) float32 pictures, none of `samples`, on which predictions are compared.
        measure: accuracy on pictures that are none of `samples`.
        name: what the model is called.

    Raises:
        InputError: not a budget of the ladder can be reached.
        GateError: surgery is not exact on this model.
    """
    step(0.0, f"{criterion}: scoring channels")
    channels = trace(model)
    scores = criteria.load(criterion)(model, channels, samples)
    units = budget.units(channels, scores, multiple)
    ladder = _Ladder(model, channels, scores, units, criterion, multiple, imgsz, samples, measure)
    step(0.1, "measuring the uncut network")
    rungs, unreached = ladder.climb(kind, lambda fraction, what: step(0.15 + 0.45 * fraction, what))
    groups = sensitivity(
        model, channels, scores, units, samples.pictures, judges, lambda f, what: step(0.6 + 0.4 * f, what)
    )
    return Analysis(
        name, kind, criterion, multiple, imgsz, ladder.uncut, ladder.accuracy, tuple(rungs), tuple(unreached),
        tuple(groups), Advice.of(rungs),
    )  # fmt: skip


# -- the whole -------------------------------------------------------------------------------------------------------
class _Ladder:
    """The uncut network and its scores, from which every budget is cut."""

    def __init__(
        self, model: nn.Module, channels: Channels, scores: np.ndarray, units: list[Unit], criterion: str,
        multiple: int, imgsz: int, samples: Samples, measure: Measure,
    ) -> None:  # fmt: skip
        self._model, self._channels, self._scores, self._units = model, channels, scores, units
        self._criterion, self._multiple, self._imgsz = criterion, multiple, imgsz
        self._samples, self._measure = samples, measure
        self.uncut = count(model, (imgsz, imgsz))
        self.accuracy, matches = measure(model)
        rng = np.random.default_rng(0)
        self._drawn = rng.integers(matches.pictures, size=(_RESAMPLES, matches.pictures))
        self._reference = self._resampled(matches)

    def climb(self, kind: str, step: Step) -> tuple[list[Rung], list[str]]:
        """The rungs, from the smallest cut to the largest, and the budgets that cannot be reached."""
        values, rungs, unreached = LADDERS[kind], [], []
        for i, value in enumerate(values):
            asked = Budget(kind, value)
            step(i / (len(values) + 1), f"{asked}: cutting, compensating, measuring")
            try:
                rungs.append(self._rung(asked))
            except InputError as error:
                if not rungs:
                    raise
                unreached.append(f"{asked}: {error}")
        good = Advice.of(rungs).recommended
        place = 0 if good is None else rungs.index(good) + 1
        if place < len(rungs) and rungs[place].kept is not None:  # half a step further than what is known to be good
            uncut = 0.0 if kind == "ratio" else 1.0
            asked = Budget(kind, round(((good.value if good else uncut) + rungs[place].value) / 2, 3))
            step(len(values) / (len(values) + 1), f"{asked}: cutting, compensating, measuring")
            rungs.insert(place, self._rung(asked))
        return rungs, unreached

    def _rung(self, asked: Budget) -> Rung:
        keep = budget.solve(self._channels, self._scores, self._units, asked)
        plan = PrunePlan.of(self._channels, keep, budget=str(asked), criterion=self._criterion)
        cut = pruning.cut(self._model, self._channels, plan, self._samples).model
        size = count(cut, (self._imgsz, self._imgsz))
        accuracy, matches = self._measure(cut)
        kept = interval = None
        if self.accuracy.map50_95:
            kept = accuracy.map50_95 / self.accuracy.map50_95
            with np.errstate(divide="ignore", invalid="ignore"):
                drawn = self._resampled(matches) / self._reference
            low, high = np.nanpercentile(np.where(np.isfinite(drawn), drawn, np.nan), [2.5, 97.5])
            interval = (float(low), float(high))
        return Rung(
            str(asked), asked.value, size.parameters, size.macs, size.channels, plan.removed,
            float(self._scores[~keep].sum()), accuracy.map50, accuracy.map50_95, kept, interval,
        )  # fmt: skip

    def _resampled(self, matches: Matches) -> np.ndarray:
        """(resamples,) mAP50-95; the same pictures are drawn for every network."""
        found = (matches.accuracy(index).map50_95 for index in self._drawn)
        return np.array([np.nan if value is None else value for value in found])


# -- each group ------------------------------------------------------------------------------------------------------
def sensitivity(
    model: nn.Module, channels: Channels, scores: np.ndarray, units: list[Unit], pictures: torch.Tensor,
    judges: torch.Tensor, step: Step = lambda fraction, what: None,
) -> list[Sensitivity]:  # fmt: skip
    """Every unit cut alone, in the order of the network.

    pictures: (N, 3, H, W) to re-solve the readers with; judges: (M, 3, H, W) to compare the predictions on.
    """
    seen = moments(model, pictures, _solvable(model, channels))
    cost = costs.macs(channels)
    full = np.array([len(g.atoms) for g in channels.groups], dtype=float)
    before = predictions(model, judges)
    units = sorted(units, key=lambda unit: min(channels.groups[g].atoms.min() for g in unit.groups))
    found = []
    for i, unit in enumerate(units):
        layers = _layers(model, channels, unit)
        step(i / len(units), f"group {i + 1}/{len(units)}")
        kept = unit.options.sum(1) / unit.options[0].sum()
        picked = int(np.argmin(np.abs(kept - (1 - SHARE))))
        without = full.copy()
        without[list(unit.groups)] = 0
        moved = None
        if picked > 0:
            keep = budget.mask(channels, scores, [unit], [picked])
            moved = divergence(before, predictions(alone(model, channels, keep, seen), judges))
        macs = float(1 - cost.of(without) / cost.of(full))
        found.append(Sensitivity(layers, int(unit.options[0].sum()), int(unit.options[picked].sum()), macs, moved))
    return found


def _layers(model: nn.Module, channels: Channels, unit: Unit) -> tuple[str, ...]:
    made = {name for g in unit.groups for name in channels.groups[g].producers}
    return tuple(n for n in channels.out if n in made and hasattr(model.get_submodule(n), "in_channels"))


def _solvable(model: nn.Module, channels: Channels) -> list[str]:
    """Ordinary convolutions whose inputs are followed."""
    modules = dict(model.named_modules())
    return [n for n in channels.inp if isinstance(modules[n], nn.Conv2d) and modules[n].groups == 1]


@torch.no_grad()
def alone(model: nn.Module, channels: Channels, keep: np.ndarray, seen: dict[str, Moments]) -> nn.Module:
    """A copy of full width in which the other atoms are silent, and the convolutions that read them make the best of
    what they have left, everything else as it was.

    keep: (atoms,) bool; seen: what each convolution sees in `model`.
    """
    plan = PrunePlan.of(channels, keep, budget="alone", criterion="none")
    trial = surgery.masked(plan, model, channels)
    modules = dict(trial.named_modules())
    for name, moment in seen.items():
        conv = modules[name]
        silent = torch.from_numpy(np.repeat(~keep[channels.inp[name]], conv.kernel_size[0] * conv.kernel_size[1]))
        if not silent.any():
            continue
        stay, old = ~silent, conv.weight.flatten(1).double()
        gram = moment.gram[stay][:, stay]
        gram.diagonal().add_(RIDGES[0] * moment.gram.diagonal().mean().clamp_min(1e-12))
        new = torch.zeros_like(old)
        new[:, stay] = old[:, stay] + torch.linalg.solve(gram, moment.gram[stay][:, silent] @ old[:, silent].T).T
        conv.weight.copy_(new.view_as(conv.weight))
        lost = (old - new) @ moment.mean  # of each output's mean
        if conv.bias is not None:
            conv.bias.add_(lost)
        elif name in channels.norm_of:
            modules[channels.norm_of[name]].running_mean.sub_(lost)
    return trial


@torch.no_grad()
def predictions(model: nn.Module, pictures: torch.Tensor, *, at_once: int = 4) -> dict[str, torch.Tensor]:
    """What the head says before decoding: scores (N, classes, positions), boxes (N, 4 * bins, positions). Of two
    heads, the one-to-one."""
    model.eval()
    found = []
    for start in range(0, len(pictures), at_once):
        raw = model(pictures[start : start + at_once])[1]
        if "one2many" in raw:
            raw = raw["one2one"]  # which is exported
        found.append(raw)
    return {key: torch.cat([raw[key] for raw in found]) for key in ("boxes", "scores")}


def divergence(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """How far predictions have moved, summed over positions, mean over pictures: the Kullback-Leibler divergence of the
    class probabilities plus, weighted by the confidence, that of the four distributions over distances, in nats. A head
    without such bins says distances alone; there it is their relative difference."""
    scores = before["scores"]
    truth = scores.sigmoid()
    moved = truth * (F.logsigmoid(scores) - F.logsigmoid(after["scores"]))
    moved += (1 - truth) * (F.logsigmoid(-scores) - F.logsigmoid(-after["scores"]))
    apart = distill.bins if before["boxes"].shape[1] > 4 else distill.distances
    boxes = 4 * apart(after["boxes"], before["boxes"]) * truth.amax(1)
    return float(moved.double().sum() + boxes.double().sum()) / len(scores)


# -- as text ---------------------------------------------------------------------------------------------------------
def table(found: Analysis, show: int = 10) -> str:
    """The analysis as text: the whole, the `show` most and least sensitive groups, the recommendation."""
    return "\n".join([*_whole(found), "", *_groups(found, show), "", *_advice(found)])


def _whole(found: Analysis) -> list[str]:
    head = ["cut, no training", "params M", "", "GMACs", "", "channels", "predicted loss", "mAP50-95", "kept", "95 %"]
    base = found.uncut
    rows = [head, _cells("uncut", base, base, 0.0, found.accuracy.map50_95, None, None)]
    rows += [_cells(r.budget, r, base, r.predicted_loss, r.map50_95, r.kept, r.interval) for r in found.rungs]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [aligned(row, widths).rstrip() for row in rows]
    lines += [f"not reached: {text}" for text in found.unreached]
    lines.append(
        f"mAP on {found.accuracy.pictures} training pictures, {found.accuracy.boxes} boxes, that nothing was solved "
        f"with; predicted loss: sum of the {found.criterion} scores of what goes. Chosen in one round; `prune` takes "
        "three."
    )
    return lines


def _cells(name: str, size, base: Cost, loss: float, map50_95, kept, interval) -> list[str]:
    return [
        name,
        f"{size.parameters / 1e6:.3g}", f"{size.parameters / base.parameters:.0%}",
        f"{size.macs / 1e9:.3g}", f"{size.macs / base.macs:.0%}",
        str(size.channels),
        f"{loss:.3g}",
        "-" if map50_95 is None else f"{map50_95:.3f}",
        "-" if kept is None else f"{kept:.0%}",
        "-" if interval is None else f"{interval[0]:.0%} to {interval[1]:.0%}",
    ]  # fmt: skip


def _groups(found: Analysis, show: int) -> list[str]:
    tried = sorted((g for g in found.groups if g.divergence is not None), key=lambda g: -g.divergence)
    head = ["group, cut alone", "channels", "left", "MACs", "divergence"]
    cells = [[label(g), str(g.width), str(g.left), f"{g.macs:.1%}", f"{g.divergence:.3g}"] for g in tried]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    lines = [aligned(row, widths) for row in [head, *cells]]
    if len(tried) > 2 * show:
        lines[1 + show : -show] = [f"  … {len(tried) - 2 * show} between"]
    lines.append(
        f"{len(tried)} groups, the most sensitive first: about {SHARE:.0%} of each goes alone, its readers re-solved. "
        "MACs: of what makes and reads it."
    )
    if len(tried) < len(found.groups):
        lines.append(f"{len(found.groups) - len(tried)} more are too narrow to be cut in steps of {found.multiple}.")
    return lines


def label(group: Sensitivity) -> str:
    """Example: model.2.m.0.cv2.conv +1: the first layer that makes these channels, and how many others do."""
    return group.layers[0] + (f" +{len(group.layers) - 1}" if len(group.layers) > 1 else "")


def _advice(found: Analysis) -> list[str]:
    advice, first, last = found.advice, found.rungs[0], found.rungs[-1]
    if first.kept is None:
        return ["nothing to recommend: the uncut network finds nothing on these pictures; are they the kind it knows?"]
    lines = []
    good = advice.recommended
    if good is None:
        lines.append(f"recommended: no cut; already {first.budget} keeps only {_kept(first)} of the uncut mAP50-95")
    else:
        macs, parameters = good.macs / found.uncut.macs, good.parameters / found.uncut.parameters
        lines.append(
            f"recommended: --{good.budget} keeps {_kept(good)} of the uncut mAP50-95 before any training, "
            f"with {macs:.0%} of the MACs and {parameters:.0%} of the parameters"
            + ("; no larger cut was tried" if good is last else "")
        )
    if good is not None and advice.sure is not good:
        safe = f"by the interval, --{advice.sure.budget} does" if advice.sure else "by the interval, no cut here does"
        lines.append(f"  {found.accuracy.pictures} pictures are too few to be sure that it keeps {KEEP:.0%}; {safe}")
    if advice.collapse is not None:
        lines.append(
            f"collapse: --{advice.collapse.budget} leaves {_kept(advice.collapse)}: from there on, long training is "
            "needed"
        )
    else:
        lines.append(f"collapse: not down to {last.budget}, which keeps {_kept(last)}")
    lines.append(
        f"A rule of thumb: what keeps {KEEP:.0%} untrained came back within 10 epochs where it was tried (YOLOv8n, "
        f"HIT-UAV); below {COLLAPSE:.0%} too little is left for a short fine-tuning."
    )
    return lines


def _kept(rung: Rung) -> str:
    return f"{rung.kept:.0%} ({rung.interval[0]:.0%} to {rung.interval[1]:.0%})"
