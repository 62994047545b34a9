"""The result of an analysis, without its presentation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgeprune_device.size import Size
from edgeprune_device.vision.accuracy import Accuracy

from edgeprune.model.count import Cost

SCHEMA_VERSION = 1
#: Fractions of the unpruned network's mAP50-95. From `KEEP` on, a short fine-tuning recovered the rest; below
#: `COLLAPSE`, it does not have enough to start from.
KEEP, COLLAPSE = 0.9, 0.5
#: The fraction of a group's channels that is removed when the group is pruned alone, rounded to the channel multiple.
SHARE = 0.375


@dataclass(frozen=True)
class AnalysisRequest:
    """The request of an analysis.

    Attributes:
        kind: the cost that the budgets limit: macs, params or ratio.
        criterion: name of the importance criterion.
        multiple: channel multiple that channel counts are rounded to.
        imgsz: size of the network's input, px.
        name: name of the model in the findings.
    """

    kind: str
    criterion: str
    multiple: int
    imgsz: Size
    name: str = "model"


@dataclass(frozen=True)
class BudgetPoint:
    """One budget of the sweep: the network pruned to it, compensated and measured.

    Attributes:
        budget: the budget as text.
        value: the fraction that the budget limits.
        parameters: parameters left.
        macs: MACs left.
        channels: channels left.
        removed: prunable channels removed.
        predicted_loss: sum of the scores of the removed channels, in the criterion's unit.
        map50: mAP50; None without labelled boxes.
        map50_95: mAP50-95; None without labelled boxes.
        kept: mAP50-95 as a fraction of the unpruned network's; None if the unpruned network finds nothing.
        interval: 95 % bootstrap interval of `kept` over the images; None as for `kept`.
    """

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
class GroupSensitivity:
    """One decision of a plan, tried alone.

    Attributes:
        layers: the convolutions that make its channels.
        width: channels before the trial.
        left: channels in the trial.
        macs: fraction of the network's MACs that make or read its channels.
        divergence: output divergence, nats summed over an image (`sensitivity.divergence`); None if the group is too
            narrow for a trial at this channel multiple.
    """

    layers: tuple[str, ...]
    width: int
    left: int
    macs: float
    divergence: float | None


@dataclass(frozen=True)
class Advice:
    """The recommendation from the points of a sweep; a field is None if no point qualifies.

    Attributes:
        recommended: the tightest budget that keeps `KEEP`, as all looser ones do.
        sure: the same for the lower end of the interval.
        collapse: the loosest budget that keeps less than `COLLAPSE`.
    """

    recommended: BudgetPoint | None
    sure: BudgetPoint | None
    collapse: BudgetPoint | None

    @classmethod
    def of(cls, points: list[BudgetPoint]) -> Advice:
        """Derive the advice from points that go from the loosest budget to the tightest."""
        kept = [(p, p.kept) for p in points if p.kept is not None]
        surely = [(p, p.interval[0]) for p in points if p.interval is not None]
        return cls(_last(kept), _last(surely), next((p for p, share in kept if share < COLLAPSE), None))

    def to_json(self) -> dict[str, Any]:
        """The advice as JSON: the budget of each point, and the two limits."""
        named = {k: None if p is None else p.budget for k, p in vars(self).items()}
        return {**named, "keep": KEEP, "collapse_below": COLLAPSE}


def _last(shares: list[tuple[BudgetPoint, float]]) -> BudgetPoint | None:
    """The last point before the first share below `KEEP`."""
    good = None
    for point, share in shares:
        if share < KEEP:
            break
        good = point
    return good


@dataclass(frozen=True, repr=False)
class Findings:
    """The figures of one analysis.

    Attributes:
        name: name of the model.
        kind: the cost that the budgets limit.
        criterion: name of the importance criterion.
        multiple: channel multiple.
        imgsz: size of the network's input, px.
        uncut: cost of the unpruned network.
        accuracy: accuracy of the unpruned network.
        rungs: the budgets reached, from the loosest to the tightest.
        unreached: the budgets that the minimum widths do not allow, each with its reason.
        groups: sensitivity of each group, in the order of the network.
        advice: the recommendation.
    """

    name: str
    kind: str
    criterion: str
    multiple: int
    imgsz: Size
    uncut: Cost
    accuracy: Accuracy
    rungs: tuple[BudgetPoint, ...]
    unreached: tuple[str, ...]
    groups: tuple[GroupSensitivity, ...]
    advice: Advice

    def to_json(self) -> dict[str, Any]:
        """The findings as JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "kind": self.kind,
            "criterion": self.criterion,
            "channel_multiple": self.multiple,
            "imgsz": self.imgsz.to_json(),
            "pictures": self.accuracy.pictures,
            "boxes": self.accuracy.boxes,
            "uncut": {
                **self.uncut.to_json(),
                "map50": self.accuracy.map50,
                "map50_95": self.accuracy.map50_95,
            },
            "rungs": [asdict(p) for p in self.rungs],
            "unreached": list(self.unreached),
            "groups": [asdict(g) for g in self.groups],
            "group_share": SHARE,
            "advice": self.advice.to_json(),
        }
