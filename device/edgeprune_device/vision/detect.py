"""Upright boxes: a network's output to rows [x1, y1, x2, y2, score, class], and their IoU.

NMS is in numpy, with the same results as Ultralytics' `non_max_suppression`, without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Sequence, Tuple

import numpy as np

from edgeprune_device.vision.postprocess import CLASS_OFFSET, Candidates
from edgeprune_device.vision.task import Task

if TYPE_CHECKING:
    import numpy.typing as npt

    from edgeprune_device.vision.preprocess import Letterbox

__all__ = ["TASK", "detections"]

_NMS_BLOCK = 512  # candidates at a time

_PAIRS = 1 << 18  # compared at a time; limits the memory even for a broken model


class Detect(Task):
    """Detection: a box is [x1, y1, x2, y2]."""

    name = "detect"
    columns = ("x1", "y1", "x2", "y2")

    def boxes(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """See `Task.boxes`."""
        half = values[2:4] / 2
        corners: npt.NDArray[Any] = np.concatenate([values[:2] - half, values[:2] + half]).T
        return corners

    def rows(self, output: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """See `Task.rows`."""
        return output

    def survivors(self, candidates: Candidates, *, iou: float, max_det: int, agnostic: bool) -> npt.NDArray[np.float32]:
        """See `Task.survivors`."""
        table = np.empty((6, len(candidates.scores)), dtype=np.float32)
        half = candidates.values[2:4] / 2
        table[:2], table[2:4] = candidates.values[:2] - half, candidates.values[:2] + half
        table[4], table[5] = candidates.scores, candidates.labels
        kept = _nms(table[:4] + table[5] * np.float32(0 if agnostic else CLASS_OFFSET), iou, max_det)
        return np.ascontiguousarray(table[:, kept].T)

    def undo(self, rows: npt.NDArray[Any], box: Letterbox) -> npt.NDArray[np.float32]:
        """See `Task.undo`; the boxes are cut at the image's edge."""
        return box.undo(rows)

    def corners(self, boxes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """See `Task.corners`."""
        return boxes

    def fields(self, rows: npt.NDArray[Any], shape: Sequence[int]) -> List[str]:
        """See `Task.fields`."""
        form = '"score": %.4f, "box": [%.1f, %.1f, %.1f, %.1f]'
        return [form % (s, x1, y1, x2, y2) for x1, y1, x2, y2, s, _ in rows.tolist()]

    def iou(self, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """See `Task.iou`.

        Widths and heights are computed first, as in pycocotools, so that the result is equal to the last bit.
        """
        aw, bw = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
        low = np.maximum(a[:, None, :2], b[None, :, :2])
        high = np.minimum((a[:, :2] + aw)[:, None], (b[:, :2] + bw)[None])
        sides = high - low
        both = np.where((sides > 0).all(axis=2), sides[..., 0] * sides[..., 1], 0.0)
        union = (aw[:, 0] * aw[:, 1])[:, None] + (bw[:, 0] * bw[:, 1])[None] - both
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(both > 0, both / union, 0.0)

    def paired_iou(self, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """See `Task.paired_iou`."""
        sides = np.maximum(np.minimum(a[:, 2:4], b[:, 2:4]) - np.maximum(a[:, :2], b[:, :2]), 0)
        both = sides[:, 0] * sides[:, 1]
        areas = [np.maximum(x[:, 2] - x[:, 0], 0) * np.maximum(x[:, 3] - x[:, 1], 0) for x in (a, b)]
        overlap: npt.NDArray[np.float64] = both / np.maximum(areas[0] + areas[1] - both, 1e-9)
        return overlap

    def area(self, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """See `Task.area`."""
        areas: npt.NDArray[np.float64] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return areas


TASK = Detect()
#: `Detect.detections`.
detections = TASK.detections


def _nms(boxes: npt.NDArray[np.float32], iou: float, max_det: int) -> npt.NDArray[np.int64]:
    """Greedy NMS.

    Args:
        boxes: (4, n) float32 corners, best score first.
        iou: Overlap above which the weaker box is removed.
        max_det: Maximum number of kept boxes.

    Returns:
        Indices of the kept boxes.
    """
    kept = np.empty(0, dtype=np.int64)
    for start in range(0, boxes.shape[1], _NMS_BLOCK):
        # Boxes kept so far stay, because the next block has lower scores, and suppress boxes of that block.
        tried = np.concatenate([kept, np.arange(start, min(start + _NMS_BLOCK, boxes.shape[1]))])
        better, worse = _overlaps(boxes[:, tried], iou)
        kept = tried[_survivors(len(tried), better, worse)][:max_det]
        if len(kept) == max_det:
            break
    return kept


def _overlaps(boxes: npt.NDArray[np.float32], iou: float) -> Tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find the pairs of boxes that overlap by more than `iou`.

    A box's partners begin near or right of its own left edge, so among boxes sorted by left edge only near ones are
    compared.

    Args:
        boxes: (4, n) corners, best score first.
        iou: The threshold.

    Returns:
        (indices of the better boxes, indices of the worse boxes), one entry per pair.
    """
    order = np.argsort(boxes[0])
    x1, y1, x2, y2 = boxes[:, order]
    width = x2 - x1
    area = width * (y2 - y1)
    # Overlap > iou * area of the left box, hence at least that share of its width: the right box begins in the rest,
    # whatever the rounding. Areas near float32's smallest number prove nothing; there any overlap counts.
    reach = x1 + width * np.where(area > 1e-30, 1.00001 - iou, 1.00001)
    rank = np.arange(len(order))
    partners = np.maximum(np.searchsorted(x1, reach, side="right") - rank - 1, 0)
    step = max(_PAIRS // max(int(partners.max()), 1), 1)
    hits = []
    for start in range(0, len(order), step):
        ranks, counts = rank[start : start + step], partners[start : start + step]
        i = np.repeat(ranks, counts)
        j = np.arange(len(i)) + np.repeat(ranks + 1 + counts - np.cumsum(counts), counts)
        w = np.minimum(x2[i], x2[j]) - x1[j]
        h = np.minimum(y2[i], y2[j]) - np.maximum(y1[i], y1[j])
        both = np.maximum(w, 0) * np.maximum(h, 0)
        # Quotient in float32, comparison in float64, as in torchvision: 0.6 in float32 is above 0.6.
        hit = (both / (area[i] + area[j] - both)).astype(np.float64) > iou
        hits.append((order[i[hit]], order[j[hit]]))
    one, other = (np.concatenate(side) for side in zip(*hits))
    return np.minimum(one, other), np.maximum(one, other)


def _survivors(n: int, better: npt.NDArray[np.int64], worse: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Indices of 0..n-1 that greedy suppression leaves, given the pairs (better, worse) that overlap.

    This works in rounds: a box that no remaining better box overlaps stays, and suppresses the worse ones. Real images
    need only a few rounds.
    """
    gone = np.zeros(n, dtype=bool)
    while len(better):
        stays = np.ones(n, dtype=bool)
        stays[worse] = False
        gone[worse[stays[better]]] = True
        unsettled = ~(gone[better] | gone[worse])
        better, worse = better[unsettled], worse[unsettled]
    return np.flatnonzero(~gone)
