"""COCO mean average precision in numpy: the only evaluator, for .pt, .onnx and engines.

It gives the same numbers as pycocotools with `maxDets = [.., 300]`, the area ranges "all" and "small" (< 32² px) and
IoU .50:.05:.95. `match` compares detections with truth once. `Matches.accuracy` then averages over any choice of images
and is cheap, so a bootstrap of 1,000 resamples takes seconds. The task states the overlap and the area of boxes. The
module imports neither models nor images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Type, Union

import numpy as np

from edgeprune_device.errors import InputError
from edgeprune_device.vision import detect
from edgeprune_device.vision.task import Task

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Accuracy", "ClassAccuracy", "ImageMatches", "Matches", "class_names", "match", "match_image"]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 300  # per image and class
SMALL_AREA_PX2 = 32.0**2


@dataclass(frozen=True)
class ClassAccuracy:
    """The accuracy of one class, e.g. ClassAccuracy(0, "person", 334, 0.91, 0.52, 310, 0.49).

    Attributes:
        index: Index of the class.
        name: Name of the class.
        boxes: Number of labelled boxes.
        map50: AP at IoU 0.5, in [0, 1]; None if the class has no box.
        map50_95: Mean AP over IoU .50:.05:.95, in [0, 1]; None if the class has no box.
        small_boxes: Number of labelled boxes of at most 32² px.
        small_map50_95: `map50_95` of the small boxes; None if there are none.
    """

    index: int
    name: str
    boxes: int
    map50: Optional[float]
    map50_95: Optional[float]
    small_boxes: int
    small_map50_95: Optional[float]


@dataclass(frozen=True)
class Accuracy:
    """Means over the classes that have boxes, in [0, 1]; None without boxes.

    Attributes:
        map50: Mean AP at IoU 0.5.
        map50_95: Mean AP over IoU .50:.05:.95.
        small_map50_95: `map50_95` of the small boxes (at most 32² px).
        pictures: Number of images.
        boxes: Number of labelled boxes.
        small_boxes: Number of small labelled boxes.
        per_class: Every class, including those without boxes.
    """

    map50: Optional[float]
    map50_95: Optional[float]
    small_map50_95: Optional[float]
    pictures: int
    boxes: int
    small_boxes: int
    per_class: Tuple[ClassAccuracy, ...]

    def to_json(self) -> Dict[str, Any]:
        """A JSON object, with `per_class` as a list of objects."""
        return {**asdict(self), "per_class": [asdict(entry) for entry in self.per_class]}

    @classmethod
    def from_json(cls, data: Dict[str, Any]) -> Accuracy:
        """Read the object that `to_json` wrote.

        The caller has checked the schema (for example `BenchReport.from_json`).
        """
        return cls(**{**data, "per_class": tuple(ClassAccuracy(**entry) for entry in data["per_class"])})


def match(
    detections: Sequence[npt.NDArray[Any]],
    truths: Sequence[npt.NDArray[Any]],
    classes: Union[int, Sequence[str]],
    task: Task = detect.TASK,
) -> Matches:
    """Match each image's detections to its truth.

    Args:
        detections: For each image (n, columns + 2) rows of the task, image px; for detection [x1, y1, x2, y2, score,
            class].
        truths: For each image (m, 1 + columns) labels of the task, image px; for detection [class, x1, y1, x2, y2].
        classes: Number of classes, or their names.
        task: The task.

    Returns:
        The matches, from which `Matches.accuracy` computes an `Accuracy`.

    Raises:
        InputError: The two lists differ in length, a table has the wrong shape, a class is out of range, or a truth is
            not finite.
    """
    names = class_names(classes)
    if len(detections) != len(truths):
        raise InputError(f"different numbers of images ({len(detections)} with detections, {len(truths)} with truth)")
    return Matches.of(
        [match_image(d, t, names, f"image {i}", task) for i, (d, t) in enumerate(zip(detections, truths))], names
    )


def class_names(classes: Union[int, Sequence[str]]) -> List[str]:
    """The names of the classes; "0", "1", … for a number of classes."""
    return [str(i) for i in range(classes)] if isinstance(classes, (int, np.integer)) else [str(c) for c in classes]


class ImageMatches(NamedTuple):
    """The matches of one image: n detections, T IoU thresholds.

    Attributes:
        labels: (n,) class of each detection.
        scores: (n,).
        hits: (n, T) whether the detection hits a box; of all boxes, and of the small ones.
        misses: (n, T) whether it counts as a miss; of all boxes, and of the small ones.
        counts: (2, classes) number of labelled boxes; of all, and of the small ones.
    """

    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    hits: Tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]
    misses: Tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]
    counts: npt.NDArray[np.int64]


def match_image(
    detections: npt.NDArray[Any], truth: npt.NDArray[Any], names: Sequence[str], what: str, task: Task = detect.TASK
) -> ImageMatches:
    """Match the detections of one image to its truth.

    Args:
        detections: (n, columns + 2) rows of the task, image px.
        truth: (m, 1 + columns) labels of the task, image px.
        names: Names of the classes.
        what: The image, for messages.
        task: The task.

    Raises:
        InputError: A table has the wrong shape, a class is out of range, or a truth is not finite.
    """
    columns = len(task.columns)
    dets = _table(detections, columns + 2, f"{what}: detections")
    truth = _table(truth, columns + 1, f"{what}: ground truth")
    for where, column in (("ground truth", truth[:, 0]), ("detections", dets[:, -1])):
        if len(column) and not (column.min() >= 0 and column.max() < len(names) and (column % 1 == 0).all()):
            raise InputError(f"{what}: {where}: class out of range (expected 0 to {len(names) - 1})")
    if not np.isfinite(truth).all():
        raise InputError(f"{what}: ground truth: value not finite (NaN or infinity)")
    labels: List[npt.NDArray[Any]] = []
    scores: List[npt.NDArray[Any]] = []
    hits: Tuple[List[npt.NDArray[np.bool_]], List[npt.NDArray[np.bool_]]] = ([], [])  # of all and of the small boxes
    misses: Tuple[List[npt.NDArray[np.bool_]], List[npt.NDArray[np.bool_]]] = ([], [])
    counts = np.zeros((2, len(names)), dtype=np.int64)
    for c in np.union1d(dets[:, -1], truth[:, 0]).astype(int):
        d, g = dets[dets[:, -1] == c], truth[truth[:, 0] == c, 1:]
        d = d[np.argsort(-d[:, -2], kind="mergesort")][:MAX_DETECTIONS]
        overlap = task.iou(d[:, :columns], g)
        large, beyond = (task.area(boxes) > SMALL_AREA_PX2 for boxes in (g, d[:, :columns]))
        matched, _ = _greedy(overlap, np.zeros(len(g), dtype=bool))
        small, ignored = _greedy(overlap, large) if large.any() else (matched, np.zeros_like(matched))
        labels.append(np.full(len(d), c))
        scores.append(d[:, -2])
        hits[0].append(matched)
        misses[0].append(~matched)
        hits[1].append(small & ~ignored)
        misses[1].append(~small & ~beyond[:, None])
        counts[0, c], counts[1, c] = len(g), (~large).sum()
    return ImageMatches(
        _joined(labels, int),
        _joined(scores, float),
        (_stacked(hits[0]), _stacked(hits[1])),
        (_stacked(misses[0]), _stacked(misses[1])),
        counts,
    )


@dataclass(frozen=True)
class Matches:
    """The matches between detections and boxes of all images; the result of `match`.

    Attributes:
        names: Names of the classes.
        pictures: Number of images.
    """

    names: Tuple[str, ...]
    pictures: int
    _all: _Curves
    _small: _Curves

    @classmethod
    def of(cls, images: Sequence[ImageMatches], names: Sequence[str]) -> Matches:
        """Join the matches of all images.

        Args:
            images: `match_image` of each image.
            names: Names of the classes.
        """
        label = _joined([image.labels for image in images], int)
        score = _joined([image.scores for image in images], float)
        picture = np.repeat(np.arange(len(images)), [len(image.labels) for image in images])
        counts = np.array([image.counts for image in images], dtype=np.int64).reshape(-1, 2, len(names))
        # By class, then by score; ties stay in image order, as with pycocotools' mergesort.
        order = np.lexsort((-score, label))
        curves = [
            _Curves(
                label[order],
                picture[order],
                _stacked([image.hits[area] for image in images])[order],
                _stacked([image.misses[area] for image in images])[order],
                counts[:, area],
            )
            for area in (0, 1)
        ]
        return cls(tuple(names), len(images), curves[0], curves[1])

    def accuracy(self, pictures: Optional[npt.NDArray[np.integer[Any]]] = None) -> Accuracy:
        """Compute the accuracy over all images or a selection.

        If two different images have detections of exactly equal score, the copies of a repeated image stay adjacent.

        Args:
            pictures: Index array of images, which may repeat (a bootstrap resample); None for all images.
        """
        if pictures is None:
            weights = np.ones(self.pictures, dtype=np.int64)
        else:
            weights = np.bincount(np.asarray(pictures, dtype=np.int64), minlength=self.pictures)
        precisions, boxes = self._all.average_precision(weights)
        small, small_boxes = self._small.average_precision(weights)
        per_class = tuple(
            ClassAccuracy(i, name, n, *_pair(ap, n), m, _pair(sap, m)[1])
            for i, (name, n, ap, m, sap) in enumerate(
                zip(self.names, boxes.tolist(), precisions.tolist(), small_boxes.tolist(), small.tolist())
            )
        )
        return Accuracy(
            map50=_mean(precisions[boxes > 0, 0]),
            map50_95=_mean(precisions[boxes > 0]),
            small_map50_95=_mean(small[small_boxes > 0]),
            pictures=int(weights.sum()),
            boxes=int(boxes.sum()),
            small_boxes=int(small_boxes.sum()),
            per_class=per_class,
        )


class _Curves:
    """The precision-recall curves of all classes and thresholds, stored flat so that a resample is a dozen numpy calls.

    A row is one (class, threshold). An entry is one detection that counts for it, best score first. Entries after a
    row's last hit are left out: they cannot raise the precision at a reached recall.
    """

    def __init__(
        self,
        label: npt.NDArray[np.int64],
        picture: npt.NDArray[np.int64],
        hit: npt.NDArray[np.bool_],
        miss: npt.NDArray[np.bool_],
        counts: npt.NDArray[np.int64],
    ):
        self.counts = counts  # (images, classes) boxes
        classes, thresholds = counts.shape[1], len(IOU_THRESHOLDS)
        bounds = np.searchsorted(label, np.arange(classes + 1))
        entry_picture: List[npt.NDArray[np.int64]] = []
        hit_entry: List[npt.NDArray[np.int64]] = []
        entry_start, hit_start, entries = [0], [0], 0
        for c in range(classes):
            for t in range(thresholds):
                rows = slice(bounds[c], bounds[c + 1])
                counted = np.flatnonzero(hit[rows, t] | miss[rows, t])
                hits = np.flatnonzero(hit[rows, t][counted])
                counted = counted[: hits[-1] + 1] if len(hits) else counted[:0]
                entry_picture.append(picture[rows][counted])
                hit_entry.append(hits + entries)
                entries += len(counted)
                entry_start.append(entries)
                hit_start.append(hit_start[-1] + len(hits))
        self.entry_picture, self.hit_entry = _joined(entry_picture, int), _joined(hit_entry, int)
        self.entry_start, self.hit_start = np.array(entry_start), np.array(hit_start)
        self.hit_row = np.repeat(np.arange(classes * thresholds), np.diff(self.hit_start))

    def average_precision(
        self, weights: npt.NDArray[np.int64]
    ) -> Tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Compute the average precision of every class and threshold.

        Args:
            weights: (images,) how often each image counts.

        Returns:
            ((classes, thresholds) AP, (classes,) boxes).
        """
        boxes = weights @ self.counts
        classes, thresholds, rows = len(boxes), len(IOU_THRESHOLDS), len(self.hit_start) - 1
        if not len(self.hit_entry):
            return np.zeros((classes, thresholds)), boxes
        entry = weights[self.entry_picture]
        seen = np.concatenate([[0], np.cumsum(entry)])
        hits = np.concatenate([[0], np.cumsum(entry[self.hit_entry])])
        row = self.hit_row
        true = hits[1:] - hits[self.hit_start[row]]
        total = seen[self.hit_entry + 1] - seen[self.entry_start[row]]
        precision = true / np.maximum(total, 1)
        # The best precision at this or a higher recall. The offset keeps the rows apart in one running maximum.
        apart = 2.0 * (rows - row)
        envelope = np.maximum.accumulate((precision + apart)[::-1])[::-1] - apart
        # The first hit that reaches each recall point, searched in integers, which is exact if recall equals the point.
        step = int(boxes.max()) + 2
        wanted = np.repeat(_hits_needed(boxes), thresholds, axis=0) + step * np.arange(rows)[:, None]
        first = np.searchsorted(true + step * row, wanted.reshape(-1)).reshape(wanted.shape)
        reached = first < self.hit_start[1:, None]
        points = np.where(reached, envelope[np.minimum(first, len(envelope) - 1)], 0.0)
        return points.mean(axis=1).reshape(classes, thresholds), boxes


def _hits_needed(boxes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(classes, 101): the smallest number of hits whose recall, in floating point, reaches the recall point."""
    n = np.maximum(boxes, 1)[:, None]
    needed: npt.NDArray[np.float64] = np.ceil(RECALL_POINTS * n)
    needed -= (needed >= 1) & ((needed - 1) / n >= RECALL_POINTS)
    needed += needed / n < RECALL_POINTS
    return needed.astype(np.int64)


def _greedy(
    overlap: npt.NDArray[np.float64], ignore: npt.NDArray[np.bool_]
) -> Tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Match the detections of one image and class as COCO does.

    Each detection takes the free box of highest IoU, the last among equals. It takes an ignored box only if no other
    fits.

    Args:
        overlap: (n, m) IoU, detections best first.
        ignore: (m,) whether a box is ignored.

    Returns:
        ((n, T) whether matched, (n, T) whether matched to an ignored box), T thresholds.
    """
    matched = np.zeros((len(overlap), len(IOU_THRESHOLDS)), dtype=bool)
    ignored = np.zeros_like(matched)
    if not overlap.size:
        return matched, ignored
    order = np.argsort(ignore, kind="mergesort")
    overlap, ignore = overlap[:, order], ignore[order]
    near = overlap >= IOU_THRESHOLDS[0]
    free = np.ones((len(IOU_THRESHOLDS), len(ignore)), dtype=bool)
    every = np.arange(len(IOU_THRESHOLDS))
    for d in np.flatnonzero(near.any(axis=1)):
        boxes = np.flatnonzero(near[d])
        fits = free[:, boxes] & (overlap[d, boxes] >= IOU_THRESHOLDS[:, None])
        # +2 ranks boxes that count above ignored ones; the reversal makes argmax find the last among equals.
        rank = np.where(fits, overlap[d, boxes] + 2.0 * ~ignore[boxes], -1.0)[:, ::-1]
        best = boxes[len(boxes) - 1 - rank.argmax(axis=1)]
        has_fit = fits.any(axis=1)
        matched[d] = has_fit
        ignored[d] = has_fit & ignore[best]
        free[every[has_fit], best[has_fit]] = False
    return matched, ignored


def _table(values: npt.ArrayLike, columns: int, what: str) -> npt.NDArray[np.float64]:
    table = np.asarray(values, dtype=np.float64)
    if table.size == 0:
        return np.zeros((0, columns))
    if table.ndim != 2 or table.shape[1] != columns:
        raise InputError(f"{what}: wrong shape (found {table.shape}, expected (n, {columns}))")
    return table


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: Union[Type[int], Type[float]]) -> npt.NDArray[Any]:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype=dtype)


def _stacked(parts: Sequence[npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    return np.concatenate(parts) if parts else np.zeros((0, len(IOU_THRESHOLDS)), dtype=bool)


def _mean(values: npt.NDArray[np.float64]) -> Optional[float]:
    return float(values.mean()) if values.size else None


def _pair(precisions: List[float], boxes: int) -> Tuple[Optional[float], Optional[float]]:
    return (precisions[0], sum(precisions) / len(precisions)) if boxes else (None, None)
