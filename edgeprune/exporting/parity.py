"""Parity: the differences between a network in PyTorch and its file in ONNX Runtime, on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from edgeprune_device.errors import GateError
from edgeprune_device.output import END2END
from edgeprune_device.runtimes import ort
from edgeprune_device.vision import detect
from edgeprune_device.vision.task import Task
from torch.overrides import TorchFunctionMode

from edgeprune import tasks
from edgeprune.model.head import output_of_file, task_of_file, two_heads
from edgeprune.model.prepare import prepare

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["Parity", "compare_outputs", "measure_parity"]

# The evaluator's confidence threshold: anchors below it never become detections.
MIN_SCORE = 1e-3
# Measured on YOLOv8n at 640 px, ONNX Runtime 1.32 against PyTorch 2.15 in FP32: 2e-4 px and 4e-6; FP16 differs by
# 0.5 px and 4e-3.
MAX_BOX_PX = 0.05
MAX_SCORE = 1e-3


@dataclass(frozen=True)
class Parity:
    """The differences between ONNX Runtime and PyTorch on the same images.

    Example: `Parity(max_box_px=0.0002, max_score=4.4e-06, pictures=8, compared=5120, unmatched=0)`: over 5,120 boxes of
    8 images no coordinate differs by a thousandth of a pixel, and no class score by more than 4.4e-6.

    Attributes:
        max_box_px: The largest difference of a box coordinate, px.
        max_score: The largest difference of a score.
        pictures: The number of images.
        compared: The number of compared boxes.
        unmatched: The number of boxes without a counterpart.
        boxless: The number of images on which neither side finds a box. Their raw outputs are compared instead, and
            `compared` includes them.
    """

    max_box_px: float
    max_score: float
    pictures: int
    compared: int
    unmatched: int = 0
    boxless: int = 0

    @property
    def over(self) -> str:
        """The compared images, as text."""
        return f"{self.pictures} images" + (f", {self.boxless} without a box" if self.boxless else "")

    def to_json(self) -> dict[str, Any]:
        """The figures as plain numbers; a difference that is not finite is null."""
        return {k: v if np.isfinite(v) else None for k, v in asdict(self).items()}

    def check(self, max_box_px: float = MAX_BOX_PX, max_score: float = MAX_SCORE) -> None:
        """Check the differences against their limits.

        Raises:
            GateError: A difference is above its limit, a box has no counterpart, or nothing was compared. The message
                contains the figures.
        """
        compared = f"{self.compared} boxes of {self.pictures} images"
        if not self.pictures or not (self.compared or self.unmatched):
            raise GateError(f"exported ONNX: not compared with PyTorch (found {compared}); give images")
        # Written so that NaN fails.
        if self.max_box_px <= max_box_px and self.max_score <= max_score and not self.unmatched:
            return
        raw = f"; {self.boxless} images without a box were compared by their raw outputs" if self.boxless else ""
        raise GateError(
            f"exported ONNX: outputs differ from PyTorch's on {compared} (boxes by up to {self.max_box_px:.4g} "
            f"px, limit {max_box_px:g}; scores by up to {self.max_score:.3g}, limit {max_score:g}; {self.unmatched} "
            f"unmatched detections{raw}); report this message with the network's YAML"
        )


def measure_parity(
    model: torch.nn.Module, exported: onnx.ModelProto | str | Path, pictures: Sequence[npt.NDArray[np.float32]]
) -> Parity:
    """Run the model in PyTorch and the file in ONNX Runtime on the same images, and apply `compare_outputs`.

    If neither side finds a box, the raw outputs are compared: the boxes and scores of all anchors, before the sigmoid
    and before a one-to-one head selects its rows. The same limits apply.

    Args:
        model: The network.
        exported: The file or its path.
        pictures: Each (1, 3, h, w) float32, RGB in 0..1. Without images nothing is compared, and `check` fails.
    """
    graph = exported if isinstance(exported, onnx.ModelProto) else onnx.load(str(exported))
    session = _session(graph)
    _, _, height, width = session.get_inputs()[0].shape
    kind, task = output_of_file(graph), tasks.get(task_of_file(graph)).on_device
    ready = prepare(model, (height, width), end2end=kind == END2END if two_heads(model) else None)
    raw = None
    differences = []
    boxless = 0
    for picture in pictures:
        with torch.inference_mode():
            expected = ready(torch.from_numpy(picture)).numpy()
        output = session.run(None, {session.get_inputs()[0].name: picture})[0]
        difference = compare_outputs(expected, output, kind, task)
        if _finds_nothing(expected, output, kind, task):
            raw = raw or _session(_with_raw_output(graph))
            boxless += 1
            difference = _compare_raw(_raw_output(ready, picture), raw.run(None, {raw.get_inputs()[0].name: picture}))
        differences.append(difference)
    columns = zip(*differences) if differences else ([], [], [], [])
    box, score, compared, unmatched = (list(column) for column in columns)
    return Parity(
        float(np.max(box, initial=0.0)), float(np.max(score, initial=0.0)), len(differences), sum(compared),
        sum(unmatched), boxless,
    )  # fmt: skip


def _session(graph: onnx.ModelProto) -> InferenceSession:
    import onnxruntime

    options = ort.options(torch.get_num_threads())
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=[ort.CPU])


def compare_outputs(
    expected: npt.NDArray[np.floating], actual: npt.NDArray[np.floating], kind: str, task: Task = detect.TASK
) -> tuple[float, float, int, int]:
    """Compare the outputs of one image: scores, and the corners of boxes.

    Raw heads, (1, 4 + classes + extra, anchors), are compared anchor by anchor, over the anchors where either side has
    a score above 0.001. If there is none (an untrained model), the 100 anchors with the highest scores are compared.

    In one-to-one heads, (1, n, 6 + extra), the order of two nearly equal scores may change. Each row above 0.001 of
    either side is therefore matched with the nearest row of its class on the other side. Rows with scores near the last
    one may drop out of the list, and are ignored. An image without such a row on either side compares nothing.

    A value that is not finite counts as an infinite difference.

    Args:
        expected: PyTorch's output.
        actual: ONNX Runtime's output.
        kind: The format of both (`edgeprune_device.output`).
        task: The task of the network.

    Returns:
        (largest box difference in px, largest score difference, compared boxes, unmatched boxes).
    """
    if expected.shape != actual.shape:
        return float("inf"), float("inf"), 0, 1
    if not np.isfinite(actual).all() or not np.isfinite(expected).all():
        return float("inf"), float("inf"), 1, 0
    before, after = (output[0].astype(np.float64) for output in (expected, actual))
    if kind == END2END:
        return _compare_rows(_cornered(task, before), _cornered(task, after))
    return _compare_anchors(task, before, after)


def _cornered(task: Task, output: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n, k + 2) [corners, score, class] of an end-to-end output."""
    rows = task.rows(output)
    return np.concatenate([task.corners(rows[:, :-2]), rows[:, -2:]], axis=1)


# -- images without a box ----------------------------------------------------------------------------------------------
def _finds_nothing(expected: npt.NDArray[np.floating], actual: npt.NDArray[np.floating], kind: str, task: Task) -> bool:
    """Whether neither side has a score above the threshold; False for outputs that cannot be compared."""
    if expected.shape != actual.shape or not np.isfinite(actual).all() or not np.isfinite(expected).all():
        return False
    if kind == END2END:
        floor = _floor(expected[0, :, :6], actual[0, :, :6])
        return not any((rows[0, :, 4] > floor).any() for rows in (expected, actual))
    scores = slice(4, expected.shape[1] - task.extra)
    return not any((columns[0, scores] > MIN_SCORE).any() for columns in (expected, actual))


class _LastSigmoid(TorchFunctionMode):
    """Records the last sigmoid and the tensor that is concatenated with it: in a detector's head, scores and boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = self.scores = self.boxes = torch.empty(0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        if func is torch.Tensor.sigmoid:
            self.logits, self.scores = args[0], value
        elif func is torch.cat and any(part is self.scores for part in args[0]):
            self.boxes = args[0][0]
        return value


def _raw_output(ready: torch.nn.Module, picture: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """(1, 4, anchors) boxes and (1, classes, anchors) scores before the sigmoid, of one image."""
    with torch.inference_mode(), _LastSigmoid() as seen:
        ready(torch.from_numpy(picture))
    return [seen.boxes.numpy(), seen.logits.numpy()]


def _with_raw_output(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the file whose outputs are those of `_raw_output`.

    Raises:
        GateError: No Concat joins boxes and the output of a sigmoid.
    """
    sigmoids = {node.output[0]: node.input[0] for node in graph.graph.node if node.op_type == "Sigmoid"}
    joined = [n for n in graph.graph.node if n.op_type == "Concat" and len(n.input) == 2 and n.input[1] in sigmoids]
    if not joined:
        raise GateError("exported ONNX: no raw outputs of the head to compare; export the network again")
    raw = onnx.ModelProto()
    raw.CopyFrom(graph)
    del raw.graph.output[:]
    for name in (joined[-1].input[0], sigmoids[joined[-1].input[1]]):
        raw.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return raw


def _compare_raw(
    expected: Sequence[npt.NDArray[np.floating]], actual: Sequence[npt.NDArray[np.floating]]
) -> tuple[float, float, int, int]:
    """The result of `compare_outputs`, for `_raw_output` of both sides.

    Every anchor is compared. Scores are compared before the sigmoid, with the limit for scores: after the sigmoid, the
    differences of tiny scores would pass any limit.
    """
    if any(a.shape != b.shape for a, b in zip(expected, actual)):
        return float("inf"), float("inf"), 0, 1
    box, score = (float(np.abs(a.astype(np.float64) - b).max()) for a, b in zip(expected, actual))
    return box, score, expected[0].shape[2], 0


# -- images with boxes -------------------------------------------------------------------------------------------------
def _compare_anchors(
    task: Task, expected: npt.NDArray[np.float64], actual: npt.NDArray[np.float64]
) -> tuple[float, float, int, int]:
    classes = len(expected) - 4 - task.extra
    scores = slice(4, 4 + classes)
    best = np.maximum(expected[scores].max(0), actual[scores].max(0))
    chosen = np.flatnonzero(best > MIN_SCORE)
    if not len(chosen):
        chosen = np.argsort(best)[-100:]
    (a, a_scores), (b, b_scores) = (task.split(output[:, chosen], classes) for output in (expected, actual))
    box, score = np.abs(task.corners(a) - task.corners(b)), np.abs(a_scores - b_scores)
    return float(box.max()), float(score.max()), len(chosen), 0


def _compare_rows(expected: npt.NDArray[np.float64], actual: npt.NDArray[np.float64]) -> tuple[float, float, int, int]:
    floor = _floor(expected, actual)
    sides = [_nearest(a, b, floor) for a, b in ((expected, actual), (actual, expected))]
    box, score, compared, unmatched = (max(column) for column in zip(*sides))
    return box, score, int(compared), int(unmatched)


def _floor(expected: npt.NDArray[np.floating], actual: npt.NDArray[np.floating]) -> float:
    """The score above which a row must be in both lists, with score and class last in each row."""
    return max(MIN_SCORE, float(max(expected[-1, -2], actual[-1, -2])) + MAX_SCORE)


def _nearest(
    rows: npt.NDArray[np.float64], others: npt.NDArray[np.float64], floor: float
) -> tuple[float, float, int, int]:
    """The result of `compare_outputs`, for the rows above `floor` and the nearest of the others."""
    rows = rows[rows[:, -2] > floor]
    box = score = 0.0
    unmatched = 0
    for row in rows:
        partners = others[others[:, -1] == row[-1]]
        if not len(partners):
            unmatched += 1
            continue
        # A score difference of 1 weighs as much as 100 px, because two rows may have the same box and different scores.
        distance = np.abs(partners[:, :-2] - row[:-2]).max(1) + 100 * np.abs(partners[:, -2] - row[-2])
        nearest = partners[distance.argmin()]
        box = max(box, float(np.abs(nearest[:-2] - row[:-2]).max()))
        score = max(score, float(abs(nearest[-2] - row[-2])))
    return box, score, len(rows), unmatched
