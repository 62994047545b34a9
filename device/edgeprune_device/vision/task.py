"""A task: the meaning of a network's output, its rows, their overlap and their form in JSON. One file a task.

The module of a task has the task's name and a `TASK`; `tasks.py` lists them. A row is one detected object: the columns
of its box, its score, its class. A label is [class, the same columns of its box].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, List, Sequence, Tuple

import numpy as np

from edgeprune_device import layouts, output
from edgeprune_device.vision.postprocess import IOU, MAX_DET, Candidates, candidates, narrowed

if TYPE_CHECKING:
    import numpy.typing as npt

    from edgeprune_device.trust.manifest import Manifest
    from edgeprune_device.vision.preprocess import Letterbox

__all__ = ["Task"]


class Task(ABC):
    """A task.

    Attributes:
        name: Its name, in the manifest and in `--task`.
        columns: Names of a row's columns before score and class.
        extra: Number of values of each object in the network's output beside its box and its scores.
    """

    name: str
    columns: Tuple[str, ...]
    extra: int = 0

    # -- the network's output --------------------------------------------------------------------------------------
    @abstractmethod
    def boxes(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The boxes of a raw output.

        Args:
            values: (4 + extra, n) [cx, cy, w, h, extra].

        Returns:
            (n, columns), in the same unit.
        """

    @abstractmethod
    def rows(self, output: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The rows of an end-to-end output.

        Args:
            output: (n, 6 + extra) rows of one image.

        Returns:
            (n, columns + 2), score and class last.
        """

    @abstractmethod
    def survivors(self, candidates: Candidates, *, iou: float, max_det: int, agnostic: bool) -> npt.NDArray[np.float32]:
        """The rows that NMS leaves; see `detections` for the arguments.

        Args:
            candidates: At least one candidate.
            iou: IoU above which NMS removes the weaker of two boxes.
            max_det: Maximum number of rows.
            agnostic: Let boxes of different classes suppress each other.
        """

    def detections(
        self,
        outputs: Sequence[npt.NDArray[Any]],
        kind: str,
        *,
        classes: int,
        conf: float,
        iou: float = IOU,
        max_det: int = MAX_DET,
        multi_label: bool = False,
        agnostic: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Turn network outputs into detections.

        Args:
            outputs: Outputs of the network.
            kind: Their meaning (see output.py): raw as Ultralytics exports it, the best anchors of a device variant, or
                end to end, whose rows are only filtered.
            classes: Number of classes.
            conf: Score threshold.
            iou: IoU above which NMS removes the weaker of two boxes.
            max_det: Maximum number of returned detections.
            multi_label: Return one detection for each class above `conf`, as Ultralytics' val does, instead of the best
                class only.
            agnostic: Let boxes of different classes suppress each other.

        Returns:
            (n, columns + 2) float32 rows, network px, best score first.

        Raises:
            InputError: The output has a shape that `kind` does not have.
        """
        if kind == output.BEST:
            outputs, kind = self.narrowed(outputs, classes, conf), output.RAW
        out = output.checked(np.asarray(outputs[0]), kind, classes, self.extra)
        if kind == output.END2END:
            rows: npt.NDArray[np.float32] = self.rows(out[0]).astype(np.float32)
            return rows[rows[:, -2] > conf][:max_det]
        with np.errstate(all="ignore"):  # NaN from a broken model exceeds no threshold and overlaps no box
            best = candidates(out[0], classes, conf, multi_label)
            if not len(best.scores):
                return np.zeros((0, len(self.columns) + 2), dtype=np.float32)
            return self.survivors(best, iou=iou, max_det=max_det, agnostic=agnostic)

    def narrowed(
        self, outputs: Sequence[npt.NDArray[Any]], classes: int, conf: float
    ) -> Tuple[npt.NDArray[np.float32]]:
        """A raw output with every anchor above a threshold, from the outputs of a device variant.

        Args:
            outputs: Outputs of the network, of kind BEST (see output.py). The last one is read only if it is needed.
            classes: Number of classes.
            conf: Score threshold.

        Raises:
            InputError: The first output has a shape that the kind does not have.
        """
        best = output.checked(outputs[0], output.BEST, classes, self.extra)[0]
        few = narrowed(best, np.asarray(outputs[1]).reshape(-1), classes, conf)
        return (outputs[2] if few is None else few[None],)

    def split(self, raw: npt.NDArray[Any], classes: int) -> Tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """((N, columns) boxes, (classes, N) scores) of a raw output of one image, (4 + classes + extra, N)."""
        return self.boxes(np.concatenate([raw[:4], raw[4 + classes :]])), raw[4 : 4 + classes]

    def shapes(self, manifest: Manifest) -> Tuple[Tuple[int, ...], List[Tuple[int, ...]]]:
        """(input shape, output shapes) of a bundle's model, for runtimes that do not read the model."""
        height, width = manifest.imgsz
        anchors = sum((height // s) * (width // s) for s in (8, 16, 32))
        kind, classes = manifest.output, len(manifest.classes)
        shapes: List[Tuple[int, ...]] = [output.shape_of(kind, classes, anchors, self.extra)]
        if kind == output.BEST:
            shapes += [shapes[0][::2], output.shape_of(output.RAW, classes, anchors, self.extra)]
        return layouts.shape_of(manifest.layout, manifest.imgsz), shapes

    # -- its rows --------------------------------------------------------------------------------------------------
    @abstractmethod
    def undo(self, rows: npt.NDArray[Any], box: Letterbox) -> npt.NDArray[np.float32]:
        """Map rows from network px to image px.

        Args:
            rows: (n, columns + 2), network px.
            box: The letterbox of the image.

        Returns:
            A float32 copy in image px.
        """

    @abstractmethod
    def corners(self, boxes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The coordinates that are compared and drawn.

        Args:
            boxes: (n, columns).

        Returns:
            (n, 2k): [x1, y1, x2, y2] of an upright box, or k corners in order.
        """

    @abstractmethod
    def fields(self, rows: npt.NDArray[Any], shape: Sequence[int]) -> List[str]:
        """The JSON text of each row, without its class: `"score": 0.8714, "box": […]`.

        Args:
            rows: (n, columns + 2) finite rows, image px.
            shape: Shape of the image, (h, w, …).
        """

    # -- its figures -----------------------------------------------------------------------------------------------
    @abstractmethod
    def iou(self, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(n, m) overlap in [0, 1] of every pair of boxes, (n, columns) and (m, columns)."""

    @abstractmethod
    def paired_iou(self, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(n,) overlap of boxes in pairs, (n, columns) each; one of them may have a single row."""

    @abstractmethod
    def area(self, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(n,) areas of boxes, (n, columns): objects of at most 32² px are small."""
