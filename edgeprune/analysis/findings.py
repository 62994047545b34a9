"""The result of an analysis, without its presentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from edgeprune_device.vision.accuracy import Accuracy

from edgeprune.model.count import Cost

SCHEMA_VERSION = 1
#: Fraction of the uncut mAP50-95 that a short fine-tuning has brought back, and below which it has little to go on.
KEEP, COLLAPSE = 0.9, 0.5
#: The fraction of a group's channels that goes when it is cut alone, as near as the target's rounding allows.
SHARE = 0.375


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
class GroupSensitivity:
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
class Findings:
    """The figures of one analysis. uncut: cost and accuracy of the network as it came; rungs: from the smallest cut to
    the largest; unreached: budgets below what the floors allow; groups: in the order of the network; name: of the
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
    groups: tuple[GroupSensitivity, ...]
    advice: Advice

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
