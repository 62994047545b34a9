"""Chooses the images that show most of a model's losses, with the detections of every model in them.

A detection finds an object of its class with IoU >= 0.5; the most confident detections are matched first. The module
knows nothing of models or of drawing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from edgeprune_device.vision.accuracy import iou

#: IoU from which a detection finds an object.
IOU = 0.5


def choose(
    pictures: Sequence[Path],
    truths: Sequence[np.ndarray],
    shapes: Sequence[tuple[int, int]],
    shown: Mapping[str, Sequence[np.ndarray]],
    count: int,
    *,
    conf: float,
) -> dict:
    """Choose the images in which the last model lost most objects that the first finds, the worst first.

    If nothing is lost, images with many objects follow.

    Args:
        pictures: image files.
        truths: for each image (m, 5) [class, x1, y1, x2, y2], px.
        shapes: for each image (height, width), px.
        shown: {model: for each image (n, 6) [x1, y1, x2, y2, score, class], px}.
        count: number of images to choose.
        conf: confidence from which detections count; those in `shown` have at least this.

    Returns:
        The gallery as JSON: the chosen images with labels, detections, and the objects lost and gained.
    """
    first, last = next(iter(shown)), next(reversed(list(shown)))
    rows = []
    for i, truth in enumerate(truths):
        # On the rounded boxes that the page lists and draws, so that a recount gives the same numbers.
        before, after = (found(_labelled(truth), _detected(shown[name][i])) for name in (first, last))
        rows.append((sorted(before - after), sorted(after - before)))
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i][0]), len(rows[i][1]), -len(truths[i]), i))
    return {
        "conf": conf,
        "iou": IOU,
        "first": first,
        "last": last,
        "pictures": [
            {
                "name": pictures[i].name,
                "path": str(pictures[i]),
                "width": int(shapes[i][1]),
                "height": int(shapes[i][0]),
                "truth": _labelled(truths[i]),
                "lost": len(rows[i][0]),
                "gained": len(rows[i][1]),
                "lost_truth": rows[i][0],
                "gained_truth": rows[i][1],
                "found": {name: _detected(per[i]) for name, per in shown.items()},
            }
            for i in order[:count]
        ],
    }


def found(truth: list[list], detections: list[list]) -> set[int]:
    """The indices of the objects that the detections find (`match`)."""
    return {i for i in match(truth, detections) if i is not None}


def match(truth: list[list], detections: list[list], least: float = IOU) -> list[int | None]:
    """Match detections to labelled objects.

    The most confident detection chooses first: the free object of its class with the highest IoU, of `least` or more.

    Args:
        truth: [class, x1, y1, x2, y2] of each object, px.
        detections: [class, confidence, x1, y1, x2, y2] of each detection, px.
        least: smallest IoU of a match.

    Returns:
        For each detection the index of its object; None for a false alarm.
    """
    matched: list[int | None] = [None] * len(detections)
    if not truth or not detections:
        return matched
    overlap = iou(_corners(detections), _corners(truth))
    free = np.ones(len(truth), dtype=bool)
    same = np.array([box[0] for box in detections])[:, None] == np.array([box[0] for box in truth])
    for i in np.argsort([-box[1] for box in detections], kind="stable"):
        reach = np.where(same[i] & free, overlap[i], -1.0)
        best = int(reach.argmax())
        if reach[best] >= least:
            free[best] = False
            matched[i] = best
    return matched


def _corners(boxes: list[list]) -> np.ndarray:
    """Return the corners (n, 4) float, px."""
    return np.array([box[-4:] for box in boxes], dtype=float)


def _labelled(truth: np.ndarray) -> list[list]:
    return [[int(c), *_rounded(box)] for c, *box in truth.tolist()]


def _detected(rows: np.ndarray) -> list[list]:
    return [[int(c), round(score, 3), *_rounded(box)] for *box, score, c in rows.tolist()]


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(float(v), 1) for v in box]
