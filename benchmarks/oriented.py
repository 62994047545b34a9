"""Post-processing of oriented boxes against Ultralytics': measured alternately on the same raw output, one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.oriented

The output has 8,400 anchors (640 px) and 15 classes, as DOTA has. Pairs of candidates overlap, so NMS removes some.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from edgeprune_device.output import RAW
from edgeprune_device.vision.obb import TASK
from ultralytics.utils.nms import non_max_suppression

CLASSES, ANCHORS, ROUNDS = 15, 8400, 100


def output(count: int) -> npt.NDArray[np.float32]:
    """A raw output in which `count` anchors score above 0.25."""
    random = np.random.default_rng(count)
    out = np.zeros((1, 4 + CLASSES + 1, ANCHORS), np.float32)
    out[0, :2], out[0, 2:4] = random.uniform(0, 640, (2, ANCHORS)), random.uniform(8, 120, (2, ANCHORS))
    out[0, -1] = random.uniform(-np.pi / 4, 3 * np.pi / 4, ANCHORS)
    out[0, 4:-1] = random.uniform(0, 0.2, (CLASSES, ANCHORS))
    chosen = np.arange(count)
    out[0, 4 + (chosen // 2) % CLASSES, chosen] = random.uniform(0.26, 0.99, count)
    for i in range(0, count - 1, 2):
        out[0, :4, i + 1], out[0, -1, i + 1] = out[0, :4, i] + random.normal(0, 2, 4), out[0, -1, i]
    return out


def times(out: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(ours, Ultralytics'), ms of each round; the two take turns."""
    tensor = torch.from_numpy(out)
    table: Any = np.zeros((2, ROUNDS))
    for i in range(-20, ROUNDS):
        start = time.perf_counter()
        TASK.detections([out], RAW, classes=CLASSES, conf=0.25)
        middle = time.perf_counter()
        non_max_suppression(tensor, 0.25, 0.7, nc=CLASSES, rotated=True)
        if i >= 0:
            table[:, i] = (middle - start) * 1e3, (time.perf_counter() - middle) * 1e3
    return table[0], table[1]


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    print("candidates  boxes  edgeprune ms  Ultralytics ms  times as fast (median of pairs)")
    for count in (0, 10, 300):
        out = output(count)
        boxes = len(TASK.detections([out], RAW, classes=CLASSES, conf=0.25))
        ours, theirs = times(out)
        ratio = np.median(theirs / ours)
        print(f"{count:10}  {boxes:5}  {np.median(ours):12.2f}  {np.median(theirs):14.2f}  {ratio:.1f}")


if __name__ == "__main__":
    main()
