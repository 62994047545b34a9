"""The part of post-processing that every task shares: thresholds, and the choice of candidates by score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import numpy as np

from edgeprune_device.output import MAX_ROWS

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["CLASS_OFFSET", "CONF", "IOU", "MAX_DET", "Candidates", "candidates", "narrowed"]

#: Score threshold of the detections; this and the next two are the defaults of `yolo predict`.
CONF = 0.25
#: IoU above which NMS removes the weaker of two boxes.
IOU = 0.7
#: Maximum number of detections per image.
MAX_DET = MAX_ROWS
#: px between classes, so that one NMS serves all of them; Ultralytics' max_wh.
CLASS_OFFSET = 7680

_MAX_CANDIDATES = 30_000  # before NMS, like Ultralytics' max_nms


class Candidates(NamedTuple):
    """The objects of an image before NMS, best score first.

    Attributes:
        values: (4 + extra, n) float32 [cx, cy, w, h, further values of the task], network px.
        scores: (n,) float32.
        labels: (n,) class.
    """

    values: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def candidates(raw: npt.NDArray[Any], classes: int, conf: float, multi_label: bool) -> Candidates:
    """Choose the anchors of a raw output whose score is above a threshold.

    Filters first, because most anchors are background.

    Args:
        raw: (4 + classes + extra, N) output of one image.
        classes: Number of classes.
        conf: Score threshold.
        multi_label: Return one candidate for each class above `conf` instead of the best class only.
    """
    keep = np.flatnonzero(raw[4 : 4 + classes].max(axis=0) > conf)
    if not len(keep):
        none = np.zeros((len(raw) - classes, 0), dtype=np.float32)
        return Candidates(none, np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64))
    picked = raw.take(keep, axis=1).astype(np.float32, copy=False)
    scores = picked[4 : 4 + classes]
    values = picked[:4] if len(raw) == 4 + classes else np.concatenate([picked[:4], picked[4 + classes :]])
    if multi_label and classes > 1:
        anchor, label = np.nonzero((scores > conf).T)
        values, score = values[:, anchor], scores[label, anchor]
    else:
        label, score = scores.argmax(axis=0), scores.max(axis=0)
    order = np.argsort(-score, kind="stable")[:_MAX_CANDIDATES]
    return Candidates(values[:, order], score[order], label[order])


def narrowed(
    best: npt.NDArray[np.float32], anchors: npt.NDArray[np.integer], classes: int, conf: float
) -> Optional[npt.NDArray[np.float32]]:
    """The anchors above a threshold among the best ones; None if there may be others.

    Args:
        best: (4 + classes + extra, K) columns of a raw output, those with the highest scores.
        anchors: (K,) positions of these columns in the raw output.
        classes: Number of classes.
        conf: Score threshold.

    Returns:
        (4 + classes + extra, n), in the order of the raw output, which decides between equal scores.
    """
    scores = best[4 : 4 + classes].max(axis=0)
    if not scores.min() <= conf:  # written so that NaN, whose place among the best means nothing, counts as incomplete
        return None
    keep = np.flatnonzero(scores > conf)
    return best.take(keep[np.argsort(anchors[keep])], axis=1)
