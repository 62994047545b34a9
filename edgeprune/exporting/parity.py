"""How far an exported file is from the network: PyTorch and ONNX Runtime on the same images."""

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

from edgeprune.model import head as heads
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
    """How far ONNX Runtime is from PyTorch on the same pictures.

    Example: `Parity(max_box_px=0.0002, max_score=4.4e-06, pictures=8, compared=5120, unmatched=0)`: over 5,120 boxes of
    8 pictures no coordinate differs by a thousandth of a pixel, and no class score by more than 4.4e-6.
    """

    max_box_px: float
    max_score: float
    pictures: int
    compared: int
    unmatched: int = 0

    def to_json(self) -> dict[str, Any]:
        """The figures as plain numbers; a difference that is not a number is null."""
        return {k: v if np.isfinite(v) else None for k, v in asdict(self).items()}

    def check(self, max_box_px: float = MAX_BOX_PX, max_score: float = MAX_SCORE) -> None:
        """Raise GateError with the figures unless both differences are within limits and something was compared."""
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
    """Run the model in PyTorch and the file in ONNX Runtime on the same pictures, each (1, 3, h, w) float32 in 0..1.

    What is compared is told at `compare_outputs`. No picture at all compares nothing, and does not pass `check`.
    """
    import onnxruntime

    graph = exported if isinstance(exported, onnx.ModelProto) else onnx.load(str(exported))
    options = ort.options(torch.get_num_threads())
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=[ort.CPU])
    _, _, height, width = session.get_inputs()[0].shape
    kind = heads.output_of_file(graph)
    ready = prepare(model, (height, width), end2end=kind == END2END if heads.has_one_to_one(model) else None)
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
    """The largest box difference in px, the largest score difference, boxes compared, boxes without a partner.

    kind: what both mean, see edgeprune_device.output.
    Raw heads (1, 4 + classes, anchors): anchor by anchor, over the anchors where either side has a score above 0.001;
    where there is none (an untrained model), over the 100 anchors with the highest scores.
    One-to-one heads (1, n, 6): the order of two nearly equal scores may change, so each expected row above 0.001 takes
    the nearest row of its class; rows as weak as the last one may fall off the list and are left out. A picture without
    such a row compares nothing.
    A value that is not finite on one side only counts as an infinite difference.
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
