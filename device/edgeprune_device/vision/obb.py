"""Oriented boxes: a network's output to rows [cx, cy, w, h, angle, score, class], and their probabilistic IoU.

The angle is in radians, from the x axis to the side w, clockwise in the image. NMS is in numpy, with the same results
as Ultralytics' `fast_nms`, without torch: a box is removed if any better box of its class overlaps it, also one that is
removed itself.
"""

from __future__ import annotations

from math import log1p
from typing import TYPE_CHECKING, Any, List, Sequence, Tuple

import numpy as np

from edgeprune_device.vision.postprocess import CLASS_OFFSET, Candidates
from edgeprune_device.vision.task import Task

if TYPE_CHECKING:
    import numpy.typing as npt

    from edgeprune_device.vision.preprocess import Letterbox

__all__ = ["TASK", "covariance", "probiou"]

_EPS = 1e-7  # of Ultralytics' batch_probiou
#: Boxes with a shorter side overlap others far from them, because `_EPS` is no longer small beside their area, px.
_THIN = 0.5
_PAIRS = 1 << 18  # compared at a time; limits the memory even for a broken model


class OrientedBoxes(Task):
    """Oriented boxes: a box is [cx, cy, w, h, angle]."""

    name = "obb"
    columns = ("cx", "cy", "w", "h", "angle")
    extra = 1

    def boxes(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """See `Task.boxes`."""
        table: npt.NDArray[Any] = values.T
        return table

    def rows(self, output: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """See `Task.rows`: [cx, cy, w, h, score, class, angle] in the network's order."""
        return output[:, [0, 1, 2, 3, 6, 4, 5]]

    def survivors(self, candidates: Candidates, *, iou: float, max_det: int, agnostic: bool) -> npt.NDArray[np.float32]:
        """See `Task.survivors`."""
        boxes = candidates.values
        if not agnostic:
            boxes = boxes.copy()
            boxes[:2] += candidates.labels * np.float32(CLASS_OFFSET)
        kept = _kept(boxes, iou)[:max_det]
        table = np.empty((len(kept), 7), dtype=np.float32)
        table[:, :5] = candidates.values[:, kept].T
        table[:, 5], table[:, 6] = candidates.scores[kept], candidates.labels[kept]
        return table

    def undo(self, rows: npt.NDArray[Any], box: Letterbox) -> npt.NDArray[np.float32]:
        """See `Task.undo`. As in Ultralytics, sides scale as if the box were upright, and nothing is cut."""
        out = np.array(rows, dtype=np.float32)
        for axis, pad in ((1, box.left), (0, box.top)):
            gain = np.float32(box.resized[axis] / box.shape[axis])
            out[:, 1 - axis] -= pad
            out[:, 1 - axis] /= gain
            out[:, 3 - axis] /= gain
        return out

    def corners(self, boxes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """See `Task.corners`: (n, 8), in Ultralytics' order."""
        cos, sin = np.cos(boxes[:, 4:5]), np.sin(boxes[:, 4:5])
        centre, w, h = boxes[:, :2], boxes[:, 2:3] / 2, boxes[:, 3:4] / 2
        along, across = np.concatenate([w * cos, w * sin], 1), np.concatenate([-h * sin, h * cos], 1)
        points = [centre + along + across, centre + along - across, centre - along - across, centre - along + across]
        corners: npt.NDArray[Any] = np.concatenate(points, axis=1)
        return corners

    def fields(self, rows: npt.NDArray[Any], shape: Sequence[int]) -> List[str]:
        """See `Task.fields`: `box` is the upright box around the corners, cut at the image's edge."""
        corners = self.corners(rows[:, :5])
        x, y = corners[:, ::2], corners[:, 1::2]
        hull = np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], 1).clip(0, [shape[1], shape[0]] * 2)
        form = (
            '"score": %.4f, "box": [%.1f, %.1f, %.1f, %.1f], '
            '"corners": [[%.1f, %.1f], [%.1f, %.1f], [%.1f, %.1f], [%.1f, %.1f]], "angle": %.4f'
        )
        table = np.concatenate([rows[:, 5:6], hull, corners, rows[:, 4:5]], axis=1)
        return [form % tuple(row) for row in table.tolist()]

    def iou(self, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """See `Task.iou`: Ultralytics' `batch_probiou`."""
        ours, theirs = (column[:, None] for column in covariance(a.T)), (column[None] for column in covariance(b.T))
        with np.errstate(all="ignore"):  # a box without area
            return probiou(*ours, *theirs)

    def paired_iou(self, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """See `Task.paired_iou`."""
        with np.errstate(all="ignore"):
            return probiou(*covariance(a.T), *covariance(b.T))

    def area(self, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """See `Task.area`."""
        areas: npt.NDArray[np.float64] = boxes[:, 2] * boxes[:, 3]
        return areas


TASK = OrientedBoxes()

#: x and y of a box's centre, and a, b and c of its covariance [[a, c], [c, b]].
_Gaussian = Tuple["npt.NDArray[Any]", "npt.NDArray[Any]", "npt.NDArray[Any]", "npt.NDArray[Any]", "npt.NDArray[Any]"]


def covariance(boxes: npt.NDArray[Any]) -> _Gaussian:
    """The Gaussian of each box, as Ultralytics computes it.

    Args:
        boxes: (5, n) [cx, cy, w, h, angle].

    Returns:
        (x, y, a, b, c), (n,) each: the centre, and the covariance [[a, c], [c, b]].
    """
    x, y, w, h, angle = boxes
    a, b = w * w / 12, h * h / 12
    cos, sin = np.cos(angle), np.sin(angle)
    cos2, sin2 = cos * cos, sin * sin
    return x, y, a * cos2 + b * sin2, a * sin2 + b * cos2, (a - b) * cos * sin


def probiou(
    x1: npt.NDArray[Any], y1: npt.NDArray[Any], a1: npt.NDArray[Any], b1: npt.NDArray[Any], c1: npt.NDArray[Any],
    x2: npt.NDArray[Any], y2: npt.NDArray[Any], a2: npt.NDArray[Any], b2: npt.NDArray[Any], c2: npt.NDArray[Any],
) -> npt.NDArray[Any]:  # fmt: skip
    """Probabilistic IoU of two Gaussians (arXiv 2106.06072), as Ultralytics computes it.

    The arguments are two results of `covariance`, in shapes that fit each other.
    """
    a, b, c = a1 + a2, b1 + b2, c1 + c2
    dx, dy = x1 - x2, y1 - y2
    size = a * b - c * c
    distance = ((a * dy * dy + b * dx * dx) * 0.25 - (c * dx * dy) * 0.5) / (size + _EPS)
    sizes = np.maximum(a1 * b1 - c1 * c1, 0) * np.maximum(a2 * b2 - c2 * c2, 0)
    spread = np.log(size / (4 * np.sqrt(sizes) + _EPS) + _EPS) * 0.5
    bhattacharyya = np.minimum(np.maximum(distance + spread, _EPS), 100.0)
    overlap: npt.NDArray[Any] = 1 - np.sqrt(1 - np.exp(-bhattacharyya) + _EPS)
    return overlap


def _kept(boxes: npt.NDArray[np.float32], iou: float) -> npt.NDArray[np.int64]:
    """Indices of the boxes that no better one overlaps by more than `iou`.

    Centres of boxes that overlap so much are near each other, so among boxes sorted by their centre's x only near ones
    are compared.

    Args:
        boxes: (5, n) [cx, cy, w, h, angle], best score first.
        iou: The threshold.
    """
    stays = np.ones(boxes.shape[1], dtype=bool)
    order = np.argsort(boxes[0])
    x, y, a, b, c = covariance(boxes[:, order])
    # The overlap falls with the Bhattacharyya distance, of which d² / (4 lambda) is a part: d is the distance of the
    # centres, and lambda, the largest eigenvalue of the sum of the covariances, is below the sum of their traces.
    farthest = -log1p(-((1 - iou) ** 2)) if iou > 0 else 100.0
    trace = a + b
    reach = np.sqrt(np.float32(4.0001 * farthest) * (trace + trace.max(initial=0))) + np.float32(1e-3)
    if iou <= 0 or (boxes[2:4].min(initial=np.inf) < _THIN) or not np.isfinite(reach).all():
        reach = np.full_like(reach, np.inf)
    rank = np.arange(len(order))
    partners = np.maximum(np.searchsorted(x, x + reach, side="right") - rank - 1, 0)
    step = max(_PAIRS // max(int(partners.max(initial=0)), 1), 1)
    for start in range(0, len(order), step):
        ranks, counts = rank[start : start + step], partners[start : start + step]
        i = np.repeat(ranks, counts)
        j = np.arange(len(i)) + np.repeat(ranks + 1 + counts - np.cumsum(counts), counts)
        near = np.abs(y[i] - y[j]) <= reach[i]
        i, j = i[near], j[near]
        overlap = probiou(x[i], y[i], a[i], b[i], c[i], x[j], y[j], a[j], b[j], c[j])
        hit = overlap > np.float32(iou)
        stays[np.maximum(order[i[hit]], order[j[hit]])] = False
    return np.flatnonzero(stays)
