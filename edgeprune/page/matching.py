"""Which detection finds which labelled object: the rule of edgeprune.gallery, which chose the pictures."""

from __future__ import annotations

import numpy as np
from edgeprune_device.accuracy import iou


def match(truth: list[list], found: list[list], least: float) -> list[int | None]:
    """For each detection the index of the object that it finds, None for a false alarm.

    truth: [class, x1, y1, x2, y2] px; found: [class, confidence, x1, y1, x2, y2] px. The most confident chooses first,
    the nearest free object of its class with an IoU of `least` or more.
    """
    matched: list[int | None] = [None] * len(found)
    if not truth or not found:
        return matched
    overlap = iou(_corners(found), _corners(truth))
    free = np.ones(len(truth), dtype=bool)
    same = np.array([box[0] for box in found])[:, None] == np.array([box[0] for box in truth])
    for i in np.argsort([-box[1] for box in found], kind="stable"):
        reach = np.where(same[i] & free, overlap[i], -1.0)
        best = int(reach.argmax())
        if reach[best] >= least:
            free[best] = False
            matched[i] = best
    return matched


def _corners(boxes: list[list]) -> np.ndarray:
    """(n, 4) float px."""
    return np.array([box[-4:] for box in boxes], dtype=float)
