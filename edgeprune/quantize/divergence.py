"""Output divergence: how far the outputs of a quantized detector are from the original's, as one smooth number.

mAP on a few dozen images varies by half a point by chance, so it cannot tell which of sixty layers hurts. Output
divergence can: on YOLOv8n the divergences of the layers add up in quadrature to that of the whole (0.119 against
0.112).
"""

from __future__ import annotations

import numpy as np
from edgeprune_device.output import END2END

__all__ = ["output_divergence"]

# Answers with a lower score never become a detection that counts.
MIN_SCORE = 0.01


def output_divergence(expected: np.ndarray, found: np.ndarray, kind: str) -> tuple[float, float]:
    """The divergence of one image, as a numerator and a denominator.

    The quotient of their sums over the images is the output divergence: 0 is equal, 0.1 is large. A found value that is
    not finite counts as a loss of its whole answer.

    Args:
        expected: The original's output, in the form of `exporting.to_onnx`.
        found: The other output.
        kind: The meaning of both (`edgeprune_device.output`).

    Returns:
        (differences, total). The differences are the absolute differences of the scores, plus one less the IoU of the
            boxes, weighed by the score. The total is the sum of the expected scores.
    """
    if kind == END2END:
        return _rows(expected[0].astype(np.float64), found[0].astype(np.float64))
    return _anchors(expected[0].astype(np.float64), found[0].astype(np.float64))


def _anchors(expected: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    broken = ~np.isfinite(found).all(0)
    found = np.where(broken, 0.0, found)
    best = expected[4:].max(0)
    chosen = np.flatnonzero((np.maximum(best, found[4:].max(0)) > MIN_SCORE) | broken)
    expected, found, best = expected[:, chosen], found[:, chosen], best[chosen]
    scores = np.abs(expected[4:] - found[4:]).sum()
    boxes = best * (1 - _iou(_corners(expected[:4]), _corners(found[:4])))
    return float(scores + boxes.sum()), float(best.sum())


def _rows(expected: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Match each expected row with the best one of its class: the order of two nearly equal scores may change."""
    rows = expected[expected[:, 4] > MIN_SCORE]
    differs = 0.0
    for row in rows:
        partners = found[found[:, 5] == row[5]]
        partners = partners[np.isfinite(partners).all(1)]
        overlap = _iou(row[:4, None], partners[:, :4].T) if len(partners) else np.zeros(1)
        score = partners[:, 4] if len(partners) else np.zeros(1)
        differs += float((np.abs(row[4] - score) + row[4] * (1 - overlap)).min())
    return differs, float(rows[:, 4].sum())


def _corners(boxes: np.ndarray) -> np.ndarray:
    """(4, n) centre and size -> corners."""
    half = boxes[2:] / 2
    return np.concatenate([boxes[:2] - half, boxes[:2] + half])


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(4, n) and (4, n) corners, or one against many -> (n,)."""
    size = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    both = size[0] * size[1]
    areas = [np.maximum(x[2] - x[0], 0) * np.maximum(x[3] - x[1], 0) for x in (a, b)]
    return both / np.maximum(areas[0] + areas[1] - both, 1e-9)
