"""Detection: labels are class cx cy w h, or class and a polygon, whose bounds are taken."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
from edgeprune_device.vision.preprocess import Letterbox

from edgeprune.tasks.task import Table, Task

__all__ = ["TASK"]


class Detect(Task):
    """Detection; a label is [class, cx, cy, w, h]."""

    name = "detect"
    network = "DetectionModel"
    objects = "upright boxes"
    width = 5
    foreign = MappingProxyType({9: "oriented boxes (class and four corners)"})
    nms_in_file = True

    def miscounted(self, count: int) -> str | None:
        """See `Task.miscounted`."""
        fits = count >= 5 and count != 6 and (count == 5 or count % 2 == 1)
        return None if fits else "class cx cy w h, or class and a polygon"

    def label(self, values: Sequence[float]) -> list[float]:
        """See `Task.label`."""
        row = list(values)
        if len(row) > 5:
            xs, ys = row[1::2], row[2::2]
            low, high = (min(xs), min(ys)), (max(xs), max(ys))
            row = [row[0], *((a + b) / 2 for a, b in zip(low, high)), *(b - a for a, b in zip(low, high))]
        if row[3] <= 0 or row[4] <= 0:
            raise ValueError("box without area")
        return row

    def truth(self, rows: Table, shape: tuple[int, int]) -> Table:
        """See `Task.truth`."""
        height, width = shape
        centre, half = rows[:, 1:3] * (width, height), rows[:, 3:5] * (width, height) / 2
        return np.concatenate([rows[:, :1], centre - half, centre + half], axis=1)

    def targets(self, truth: Table, box: Letterbox) -> Table:
        """See `Task.targets`: [class, cx, cy, w, h]."""
        height, width = box.size
        xyxy = truth[:, 1:] * box.scale + (box.left, box.top, box.left, box.top)
        centre, size = (xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]
        return np.concatenate([truth[:, :1], centre / (width, height), size / (width, height)], axis=1)


TASK = Detect()
