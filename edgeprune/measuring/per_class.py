"""Average precision by class, because an overall mAP hides the class that was lost.

The failed gate, the table, the card and the page share this module's rule for the class that lost most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from edgeprune_device.printable import printable
from edgeprune_device.vision.accuracy import Accuracy

FEW_BOXES = 30  # with fewer, each box is more than 3 points of recall, and a change means little
_SHOWN = 0.0005  # a smaller loss is not visible with three digits


class ClassFigures(TypedDict):
    """The average precision of one class.

    Attributes:
        name: name of the class.
        boxes: number of labelled boxes.
        map50: AP at IoU 0.5; None without boxes.
        map50_95: mean AP over IoU .50:.05:.95; None without boxes.
    """

    name: str
    boxes: int
    map50: float | None
    map50_95: float | None


def figures_of(accuracy: Accuracy) -> list[ClassFigures]:
    """The average precision of each class."""
    return [ClassFigures(name=c.name, boxes=c.boxes, map50=c.map50, map50_95=c.map50_95) for c in accuracy.per_class]


def few(entry: ClassFigures) -> bool:
    """Whether a class has too few boxes for a change of its AP to be meaningful."""
    return entry["boxes"] < FEW_BOXES


def worst(
    before: Sequence[ClassFigures] | None, after: Sequence[ClassFigures] | None
) -> tuple[str, float, float] | None:
    """The class that lost most, among those with enough boxes.

    Args:
        before: average precisions of the first model.
        after: the same of the second model, on the same images.

    Returns:
        (class as printable text, mAP50-95 before, mAP50-95 after); None if no class lost, or if there is only one
            class, whose AP is the mAP.
    """
    now = {entry["name"]: entry["map50_95"] for entry in after or ()}
    pairs = [
        (entry["name"], was, is_now)
        for entry in before or ()
        if not few(entry) and (was := entry["map50_95"]) is not None and (is_now := now.get(entry["name"])) is not None
    ]
    worst_pair = min(pairs, key=lambda pair: pair[2] - pair[1], default=None)
    if worst_pair is None or len(before or ()) < 2 or worst_pair[1] - worst_pair[2] < _SHOWN:
        return None
    return printable(worst_pair[0]), *worst_pair[1:]
