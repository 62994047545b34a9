"""The pictures that tell most of what a model lost: which, and what every model finds in them.

An object is found by a detection of its class with IoU >= 0.5, the most confident detections first. Knows nothing of
models or of drawing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from edgeprune_device.accuracy import iou

#: Overlap from which a detection finds an object.
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
    """The `count` pictures in which the last model lost most objects that the first finds, the worst first; as JSON.

    truths: per picture (m, 5) [class, x1, y1, x2, y2] px; shapes: (height, width) px; shown: model -> per picture
    (n, 6) [x1, y1, x2, y2, score, class] px, of confidence `conf` and more. Where nothing is lost, pictures with many
    objects stand in.
    """
    first, last = next(iter(shown)), next(reversed(list(shown)))
    rows = []
    for i, truth in enumerate(truths):
        before, after = (found(truth, shown[name][i]) for name in (first, last))
        rows.append((np.flatnonzero(before & ~after), np.flatnonzero(after & ~before)))
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
                "truth": [[int(c), *_rounded(box)] for c, *box in truths[i].tolist()],
                "lost": len(rows[i][0]),
                "gained": len(rows[i][1]),
                "lost_truth": rows[i][0].tolist(),
                "gained_truth": rows[i][1].tolist(),
                "found": {
                    name: [[int(c), round(score, 3), *_rounded(box)] for *box, score, c in per[i].tolist()]
                    for name, per in shown.items()
                },
            }
            for i in order[:count]
        ],
    }


def found(truth: np.ndarray, detections: np.ndarray) -> np.ndarray:
    """(m,) bool: which objects the detections find; each detection finds one at most."""
    free = np.ones(len(truth), dtype=bool)
    if not len(truth) or not len(detections):
        return ~free
    overlap = iou(detections[:, :4].astype(np.float64), truth[:, 1:5])
    overlap[detections[:, 5:6] != truth[None, :, 0]] = 0.0
    for d in np.argsort(-detections[:, 4], kind="stable"):
        best = int(np.argmax(np.where(free, overlap[d], -1.0)))
        if free[best] and overlap[d, best] >= IOU:
            free[best] = False
    return ~free


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(float(v), 1) for v in box]
