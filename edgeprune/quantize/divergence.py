"""Output divergence: how far the outputs of a quantized detector are from the original's, as one smooth number.

mAP on a few dozen images varies by half a point by chance, so it cannot rank sixty layers. Output divergence can: on
YOLOv8n the divergences of the layers add up in quadrature to that of the whole network (0.119 against 0.112).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from edgeprune_device.output import END2END
from edgeprune_device.vision import detect
from edgeprune_device.vision.task import Task

__all__ = ["output_divergence"]

# Predictions with a lower score are ignored: they do not become detections.
MIN_SCORE = 0.01


def output_divergence(
    expected: npt.NDArray[np.floating], actual: npt.NDArray[np.floating], kind: str, task: Task = detect.TASK
) -> tuple[float, float]:
    """The divergence of one image, as a numerator and a denominator.

    The output divergence is the quotient of their sums over the images: 0 means equal, 0.1 is large. A prediction of
    `actual` with a value that is not finite counts as lost.

    Args:
        expected: The original's output, in the form of `exporting.to_onnx`.
        actual: The other output.
        kind: The format of both (`edgeprune_device.output`).
        task: The task of the network.

    Returns:
        (differences, total). The differences are the absolute differences of the scores, plus one minus the IoU
            of the boxes, weighted by the score. The total is the sum of the expected scores.
    """
    before, after = (output[0].astype(np.float64) for output in (expected, actual))
    if kind == END2END:
        return _rows(task, task.rows(before), task.rows(after))
    return _anchors(task, before, after)


def _anchors(task: Task, expected: npt.NDArray[np.float64], actual: npt.NDArray[np.float64]) -> tuple[float, float]:
    classes = len(expected) - 4 - task.extra
    scores = slice(4, 4 + classes)
    broken = ~np.isfinite(actual).all(0)
    actual = np.where(broken, 0.0, actual)
    best = expected[scores].max(0)
    chosen = np.flatnonzero((np.maximum(best, actual[scores].max(0)) > MIN_SCORE) | broken)
    best = best[chosen]
    (a, a_scores), (b, b_scores) = (task.split(output[:, chosen], classes) for output in (expected, actual))
    differences = best * (1 - task.paired_iou(a, b))
    return float(np.abs(a_scores - b_scores).sum() + differences.sum()), float(best.sum())


def _rows(task: Task, expected: npt.NDArray[np.float64], actual: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Match each expected row with the best one of its class: the order of two nearly equal scores may change."""
    rows = expected[expected[:, -2] > MIN_SCORE]
    differs = 0.0
    for row in rows:
        partners = actual[actual[:, -1] == row[-1]]
        partners = partners[np.isfinite(partners).all(1)]
        overlap = task.paired_iou(row[None, :-2], partners[:, :-2]) if len(partners) else np.zeros(1)
        score = partners[:, -2] if len(partners) else np.zeros(1)
        differs += float((np.abs(row[-2] - score) + row[-2] * (1 - overlap)).min())
    return differs, float(rows[:, -2].sum())
