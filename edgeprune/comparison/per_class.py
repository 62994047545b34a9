"""Average precision by class: an overall mAP hides who was lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FEW_BOXES = 30  # below, one box is more than 3 points of recall: a change says little
_SHOWN = 0.0005  # with three digits, less is none


def few(entry: Mapping[str, Any]) -> bool:
    """Whether a class has too few boxes for a change of its AP to say anything."""
    return (entry.get("boxes") or 0) < FEW_BOXES


def worst(
    before: Sequence[Mapping[str, Any]] | None, after: Sequence[Mapping[str, Any]] | None
) -> tuple[str, float, float] | None:
    """(class, mAP50-95 before, after) of the class that lost most, of those with boxes enough to tell.

    before, after: [{name, boxes, map50_95}] on the same pictures. None: none lost, or there is one class only, whose AP
    is the mAP.
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
