"""Parity: how far an exported file is from the network, with PyTorch and ONNX Runtime on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from edgeprune_device.errors import GateError
from edgeprune_device.output import END2END
from edgeprune_device.runtimes import ort

from edgeprune.model.head import has_one_to_one, output_of_file
from edgeprune.model.prepare import prepare

__all__ = ["Parity", "compare_outputs", "measure_parity"]

# Anchors below this score never become a detection: the confidence of the one evaluator.
MIN_SCORE = 1e-3
# Measured on YOLOv8n at 640 px, ONNX Runtime 1.32 against PyTorch 2.15 in FP32: 2e-4 px and 4e-6; FP16 differs by
# 0.5 px and 4e-3.
MAX_BOX_PX = 0.05
MAX_SCORE = 1e-3


@dataclass(frozen=True)
class Parity:
    """How far ONNX Runtime is from PyTorch on the same images.

    Example: `Parity(max_box_px=0.0002, max_score=4.4e-06, pictures=8, compared=5120, unmatched=0)`: over 5,120 boxes of
    8 images no coordinate differs by a thousandth of a pixel, and no class score by more than 4.4e-6.

    Attributes:
        max_box_px: The largest difference of a box coordinate, px.
        max_score: The largest difference of a score.
        pictures: The number of images.
        compared: The number of compared boxes.
        unmatched: The number of boxes without a partner.
    """

    max_box_px: float
    max_score: float
    pictures: int
    compared: int
    unmatched: int = 0

    def to_json(self) -> dict[str, Any]:
        """The figures as plain numbers; a difference that is not finite is null."""
        return {k: v if np.isfinite(v) else None for k, v in asdict(self).items()}

    def check(self, max_box_px: float = MAX_BOX_PX, max_score: float = MAX_SCORE) -> None:
        """Hold the differences to their limits.

        Raises:
            GateError: A difference is above its limit, a box has no partner, or nothing was compared. The message has
                the figures.
        """
        # Written so that NaN fails.
        good = self.max_box_px <= max_box_px and self.max_score <= max_score and not self.unmatched
        if good and self.pictures and self.compared:
            return
        raise GateError(
            f"the exported ONNX does not equal the PyTorch model: boxes differ by up to {self.max_box_px:.4g} px "
            f"(limit {max_box_px:g}), scores by up to {self.max_score:.3g} (limit {max_score:g}), "
            f"{self.unmatched} detections without a partner, over {self.compared} boxes of {self.pictures} pictures"
        )


def measure_parity(
    model: torch.nn.Module, exported: onnx.ModelProto | str | Path, pictures: Sequence[np.ndarray]
) -> Parity:
    """Run the model in PyTorch and the file in ONNX Runtime on the same images, and compare as `compare_outputs` does.

    Args:
        model: The network.
        exported: The file or its path.
        pictures: Each (1, 3, h, w) float32, RGB in 0..1. Without any image nothing is compared, which does not pass
            `check`.
    """
    import onnxruntime

    graph = exported if isinstance(exported, onnx.ModelProto) else onnx.load(str(exported))
    options = ort.options(torch.get_num_threads())
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=[ort.CPU])
    _, _, height, width = session.get_inputs()[0].shape
    kind = output_of_file(graph)
    ready = prepare(model, (height, width), end2end=kind == END2END if has_one_to_one(model) else None)
    found = []
    for picture in pictures:
        with torch.inference_mode():
            expected = ready(torch.from_numpy(picture)).numpy()
        found.append(compare_outputs(expected, session.run(None, {session.get_inputs()[0].name: picture})[0], kind))
    box, score, compared, unmatched = (list(column) for column in zip(*found)) if found else ([], [], [], [])
    return Parity(
        float(np.max(box, initial=0.0)), float(np.max(score, initial=0.0)), len(found), sum(compared), sum(unmatched)
    )


def compare_outputs(expected: np.ndarray, actual: np.ndarray, kind: str) -> tuple[float, float, int, int]:
    """Compare the outputs of one image.

    Raw heads, (1, 4 + classes, anchors), are compared anchor by anchor, over the anchors where either side has a score
    above 0.001. Where there is none (an untrained model), the 100 anchors with the highest scores are compared.

    In one-to-one heads, (1, n, 6), the order of two nearly equal scores may change, so each expected row above 0.001
    takes the nearest row of its class. Rows as weak as the last one may fall off the list and are left out. An image
    without such a row compares nothing.

    A value that is not finite counts as an infinite difference.

    Args:
        expected: PyTorch's output.
        actual: ONNX Runtime's output.
        kind: The meaning of both (`edgeprune_device.output`).

    Returns:
        (largest box difference in px, largest score difference, boxes compared, boxes without a partner).
    """
    if expected.shape != actual.shape:
        return float("inf"), float("inf"), 0, 1
    if not np.isfinite(actual).all() or not np.isfinite(expected).all():
        return float("inf"), float("inf"), 1, 0
    if kind == END2END:
        return _compare_rows(expected[0].astype(np.float64), actual[0].astype(np.float64))
    return _compare_anchors(expected[0].astype(np.float64), actual[0].astype(np.float64))


def _compare_anchors(expected: np.ndarray, actual: np.ndarray) -> tuple[float, float, int, int]:
    best = np.maximum(expected[4:].max(0), actual[4:].max(0))
    chosen = np.flatnonzero(best > MIN_SCORE)
    if not len(chosen):
        chosen = np.argsort(best)[-100:]
    difference = np.abs(expected[:, chosen] - actual[:, chosen])
    return float(difference[:4].max()), float(difference[4:].max()), len(chosen), 0


def _compare_rows(expected: np.ndarray, actual: np.ndarray) -> tuple[float, float, int, int]:
    floor = max(MIN_SCORE, expected[-1, 4] + MAX_SCORE)
    rows = expected[expected[:, 4] > floor]
    box = score = 0.0
    unmatched = 0
    for row in rows:
        partners = actual[actual[:, 5] == row[5]]
        if not len(partners):
            unmatched += 1
            continue
        # A score of 1 weighs as much as 100 px: the same place may be found twice with different scores.
        distance = np.abs(partners[:, :4] - row[:4]).max(1) + 100 * np.abs(partners[:, 4] - row[4])
        nearest = partners[distance.argmin()]
        box = max(box, float(np.abs(nearest[:4] - row[:4]).max()))
        score = max(score, float(abs(nearest[4] - row[4])))
    return box, score, len(rows), unmatched
