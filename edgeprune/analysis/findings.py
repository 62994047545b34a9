"""The result of an analysis, without its presentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from edgeprune_device.vision.accuracy import Accuracy

from edgeprune.model.count import Cost

SCHEMA_VERSION = 1
#: Fractions of the uncut mAP50-95: from which a short fine-tuning has recovered, and below which too little is left.
KEEP, COLLAPSE = 0.9, 0.5
#: The fraction of a group's channels that is removed when the group is pruned alone, rounded to the channel multiple.
SHARE = 0.375


@dataclass(frozen=True)
class Rung:
    """One budget of the ladder, pruned and compensated.

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
        kept: mAP50-95 as a fraction of the uncut network's; None if the uncut network finds nothing.
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
        divergence: output divergence, nats summed over an image (`sensitivity.divergence`); None if rounding leaves no
            trial.
    """

    layers: tuple[str, ...]
    width: int
    left: int
    macs: float
    divergence: float | None


@dataclass(frozen=True)
class Advice:
    """The recommendation from the rungs of a ladder; a field is None if no rung qualifies.

    Attributes:
        recommended: the largest cut, without a gap from the smallest on, that keeps `KEEP`.
        sure: the same by the lower end of the interval.
        collapse: the smallest cut that keeps less than `COLLAPSE`.
    """

    recommended: Rung | None
    sure: Rung | None
    collapse: Rung | None

    @classmethod
    def of(cls, rungs: list[Rung]) -> Advice:
        """Derive the advice from rungs that go from the smallest cut to the largest."""
        known = [r for r in rungs if r.kept is not None]
        collapse = next((r for r in known if r.kept < COLLAPSE), None)
        return cls(_last(known, lambda r: r.kept), _last(known, lambda r: r.interval[0]), collapse)

    def to_json(self) -> dict:
        """The advice as JSON: the budget of each rung, and the two limits."""
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
class Findings:
    """The figures of one analysis.

    Attributes:
        name: name of the model.
        kind: the cost that the budgets limit.
        criterion: name of the importance criterion.
        multiple: channel multiple.
        imgsz: network input, px.
        uncut: cost of the original network.
        accuracy: accuracy of the original network.
        rungs: the budgets reached, from the smallest cut to the largest.
        unreached: the budgets that the minimum widths do not allow, each with its reason.
        groups: sensitivity of each group, in the order of the network.
        advice: the recommendation.
    """

    name: str
    kind: str
    criterion: str
    multiple: int
    imgsz: int
    uncut: Cost
    accuracy: Accuracy
    rungs: tuple[Rung, ...]
    unreached: tuple[str, ...]
    groups: tuple[GroupSensitivity, ...]
    advice: Advice

    def to_json(self) -> dict:
        """The findings as JSON."""
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
