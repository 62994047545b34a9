"""Oriented boxes: labels are class and four corners, x1 y1 x2 y2 x3 y3 x4 y4."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from edgeprune_device.vision.preprocess import Letterbox

from edgeprune.tasks.task import Table, Task

__all__ = ["TASK"]

#: A smaller quadrilateral has no area, in shares of the image.
_LEAST_AREA = 1e-9


class OrientedBoxes(Task):
    """Oriented boxes; a label is [class, x1, y1, … x4, y4]."""

    name = "obb"
    network = "OBBModel"
    objects = "oriented boxes"
    width = 9

    def miscounted(self, count: int) -> str | None:
        """See `Task.miscounted`."""
        if count == 9:
            return None
        upright = "; five values are an upright box, for a detector" if count == 5 else ""
        return f"class and four corners, x1 y1 x2 y2 x3 y3 x4 y4{upright}"

    def label(self, values: Sequence[float]) -> list[float]:
        """See `Task.label`."""
        a, b, c, d = zip(values[1::2], values[2::2])
        if _cross(a, b, c, d) or _cross(b, c, d, a):
            raise ValueError("the sides of the box cross each other (expected its corners in order)")
        if abs(_turn(a, b, c) + _turn(a, c, d)) / 2 < _LEAST_AREA:
            raise ValueError("box without area")
        return list(values)

    def truth(self, rows: Table, shape: tuple[int, int]) -> Table:
        """See `Task.truth`: [class, cx, cy, w, h, angle] of the smallest rectangle, as Ultralytics computes it."""
        height, width = shape
        corners = (rows[:, 1:].reshape(-1, 4, 2) * (width, height)).astype(np.float32)
        boxes = np.array([_rectangle(points) for points in corners], dtype=np.float64).reshape(-1, 5)
        return np.concatenate([rows[:, :1], boxes], axis=1)

    def targets(self, truth: Table, box: Letterbox) -> Table:
        """See `Task.targets`: [class, cx, cy, w, h, angle]."""
        height, width = box.size
        centre = truth[:, 1:3] * box.scale + (box.left, box.top)
        size = truth[:, 3:5] * box.scale
        return np.concatenate([truth[:, :1], centre / (width, height), size / (width, height), truth[:, 5:]], axis=1)


TASK = OrientedBoxes()


def _rectangle(points: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[float]:
    """[cx, cy, w, h, angle] of the smallest rectangle around points; w is the longer side, the angle in -π/4 .. 3π/4.

    The same as Ultralytics' `xyxyxyxy2xywhr`.
    """
    (cx, cy), (w, h), degrees = cv2.minAreaRect(points)
    angle = degrees / 180 * math.pi
    if w < h:
        w, h = h, w
        angle += math.pi / 2
    while angle >= 3 * math.pi / 4:
        angle -= math.pi
    while angle < -math.pi / 4:
        angle += math.pi
    return [cx, cy, w, h, angle]


_Point = tuple[float, float]


def _turn(a: _Point, b: _Point, c: _Point) -> float:
    """Twice the signed area of a triangle."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _cross(a: _Point, b: _Point, c: _Point, d: _Point) -> bool:
    """Whether the line from a to b crosses the line from c to d, inside both."""
    return _turn(a, b, c) * _turn(a, b, d) < 0 and _turn(c, d, a) * _turn(c, d, b) < 0
