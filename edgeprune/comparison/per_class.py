"""Average precision by class, because an overall mAP hides the class that was lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FEW_BOXES = 30  # with fewer, one box is more than 3 points of recall, and a change means little
_SHOWN = 0.0005  # a smaller loss is not visible with three digits


def few(entry: Mapping[str, Any]) -> bool:
    """Whether a class has too few boxes for a change of its AP to be meaningful."""
    return (entry.get("boxes") or 0) < FEW_BOXES


def worst(
    before: Sequence[Mapping[str, Any]] | None, after: Sequence[Mapping[str, Any]] | None
) -> tuple[str, float, float] | None:
    """The class that lost most, among those with enough boxes.

    Args:
        before: [{name, boxes, map50_95}] of the first model.
        after: the same of the second model, on the same images.

    Returns:
        (class, mAP50-95 before, mAP50-95 after); None if no class lost, or if there is only one class, whose AP is the
        mAP.
    """
    now = {entry["name"]: entry["map50_95"] for entry in after or ()}
    pairs = [
        (entry["name"], entry["map50_95"], now[entry["name"]])
        for entry in before or ()
        if not few(entry) and entry["map50_95"] is not None and now.get(entry["name"]) is not None
    ]
    found = min(pairs, key=lambda pair: pair[2] - pair[1], default=None)
    if found is None or len(before or ()) < 2 or found[1] - found[2] < _SHOWN:
        return None
    return found
