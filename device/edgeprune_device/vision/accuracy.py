"""COCO mean average precision in numpy: the one evaluator, for .pt, .onnx and engines alike.

It gives the same numbers as pycocotools with `maxDets = [.., 300]`, the area ranges "all" and "small" (< 32² px) and
IoU .50:.05:.95. `match` compares detections with truth once. `Matches.accuracy` then averages over any choice of images
and is cheap, so a bootstrap of 1,000 resamples takes seconds. The module handles boxes only and imports neither models
nor images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import List, Optional, Sequence, Tuple, Union

import numpy as np

from edgeprune_device.errors import InputError

__all__ = ["Accuracy", "ClassAccuracy", "Matches", "iou", "match"]

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
        map50: AP at IoU 0.5, in [0, 1]; None where the class has no box.
        map50_95: Mean AP over IoU .50:.05:.95, in [0, 1]; None where the class has no box.
        small_boxes: Number of labelled boxes of at most 32² px.
        small_map50_95: `map50_95` of the small boxes; None where there is none.
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
    """Means over the classes that have boxes, in [0, 1]; None where there is no box.

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

    def to_json(self) -> dict:
        """A JSON object, with `per_class` as a list of objects."""
        return {**asdict(self), "per_class": [asdict(entry) for entry in self.per_class]}

    @classmethod
    def from_json(cls, data: dict) -> Accuracy:
        """Read the object that `to_json` wrote.

        The caller has checked the schema (for example `BenchReport.from_json`).
        """
        return cls(**{**data, "per_class": tuple(ClassAccuracy(**entry) for entry in data["per_class"])})


def match(
    detections: Sequence[np.ndarray], truths: Sequence[np.ndarray], classes: Union[int, Sequence[str]]
) -> Matches:
    """Match each image's detections to its truth.

    Args:
        detections: For each image (n, 6) [x1, y1, x2, y2, score, class], image px.
        truths: For each image (m, 5) [class, x1, y1, x2, y2], image px.
        classes: Number of classes, or their names.

    Returns:
        The matches, from which `Matches.accuracy` computes an `Accuracy`.

    Raises:
        InputError: The two lists differ in length, a table has the wrong shape, a class is out of range, or a truth is
            not finite.
    """
    names = [str(i) for i in range(classes)] if isinstance(classes, (int, np.integer)) else [str(c) for c in classes]
    if len(detections) != len(truths):
        raise InputError(f"{len(detections)} pictures with detections but {len(truths)} with truth")
    picture, label, score, hits, misses = [], [], [], ([], []), ([], [])
    counts = np.zeros((2, len(truths), len(names)), dtype=np.int64)
    for p, (dets, truth) in enumerate(zip(detections, truths)):
        dets = _table(dets, 6, f"picture {p}: detections")
        truth = _table(truth, 5, f"picture {p}: truth")
        for what, column in (("truth", truth[:, 0]), ("detections", dets[:, 5])):
            if len(column) and not (column.min() >= 0 and column.max() < len(names) and (column % 1 == 0).all()):
                raise InputError(f"picture {p}: {what}: a class is outside 0..{len(names) - 1}")
        if not np.isfinite(truth).all():
            raise InputError(f"picture {p}: truth: a coordinate is not finite")
        for c in np.union1d(dets[:, 5], truth[:, 0]).astype(int):
            d, g = dets[dets[:, 5] == c], truth[truth[:, 0] == c, 1:]
            d = d[np.argsort(-d[:, 4], kind="mergesort")][:MAX_DETECTIONS]
            overlap = iou(d[:, :4], g)
            large, beyond = _area(g) > SMALL_AREA_PX2, _area(d) > SMALL_AREA_PX2
            matched, _ = _greedy(overlap, np.zeros(len(g), dtype=bool))
            small, ignored = _greedy(overlap, large) if large.any() else (matched, np.zeros_like(matched))
            picture.append(np.full(len(d), p))
            label.append(np.full(len(d), c))
            score.append(d[:, 4])
            hits[0].append(matched)
            misses[0].append(~matched)
            hits[1].append(small & ~ignored)
            misses[1].append(~small & ~beyond[:, None])
            counts[0, p, c], counts[1, p, c] = len(g), (~large).sum()
    # By class, then by score; ties stay in image order, as pycocotools' mergesort leaves them.
    label, score, picture = _joined(label, int), _joined(score, float), _joined(picture, int)
    order = np.lexsort((-score, label))
    curves = [
        _Curves(label[order], picture[order], _stacked(hits[a])[order], _stacked(misses[a])[order], counts[a])
        for a in (0, 1)
    ]
    return Matches(tuple(names), len(truths), curves[0], curves[1])


@dataclass(frozen=True)
class Matches:
    """The matches between detections and boxes of all images; `match` makes it.

    Attributes:
        names: Names of the classes.
        pictures: Number of images.
    """

    names: Tuple[str, ...]
    pictures: int
    _all: _Curves
    _small: _Curves

    def accuracy(self, pictures: Optional[np.ndarray] = None) -> Accuracy:
        """Compute the accuracy over all images or over a choice of them.

        Where two different images have detections of exactly equal score, the copies of a repeated image stand
        together.

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

    A row is one (class, threshold). An entry is one detection that counts there, best score first. Entries after a
    row's last hit are left out: they cannot raise the precision at any recall that is reached.
    """

    def __init__(self, label, picture, hit, miss, counts):
        self.counts = counts  # (images, classes) boxes
        classes, thresholds = counts.shape[1], len(IOU_THRESHOLDS)
        bounds = np.searchsorted(label, np.arange(classes + 1))
        entry_picture, hit_entry, entry_start, hit_start, entries = [], [], [0], [0], 0
        for c in range(classes):
            for t in range(thresholds):
                rows = slice(bounds[c], bounds[c + 1])
                counted = np.flatnonzero(hit[rows, t] | miss[rows, t])
                found = np.flatnonzero(hit[rows, t][counted])
                counted = counted[: found[-1] + 1] if len(found) else counted[:0]
                entry_picture.append(picture[rows][counted])
                hit_entry.append(found + entries)
                entries += len(counted)
                entry_start.append(entries)
                hit_start.append(hit_start[-1] + len(found))
        self.entry_picture, self.hit_entry = _joined(entry_picture, int), _joined(hit_entry, int)
        self.entry_start, self.hit_start = np.array(entry_start), np.array(hit_start)
        self.hit_row = np.repeat(np.arange(classes * thresholds), np.diff(self.hit_start))

    def average_precision(self, weights: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
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
        # Best precision at this recall or a higher one. The offset keeps the rows apart in one running maximum.
        apart = 2.0 * (rows - row)
        envelope = np.maximum.accumulate((precision + apart)[::-1])[::-1] - apart
        # The first hit that reaches each recall point, searched in whole numbers: exact where recall hits the point.
        step = int(boxes.max()) + 2
        wanted = np.repeat(_hits_needed(boxes), thresholds, axis=0) + step * np.arange(rows)[:, None]
        first = np.searchsorted(true + step * row, wanted.reshape(-1)).reshape(wanted.shape)
        reached = first < self.hit_start[1:, None]
        points = np.where(reached, envelope[np.minimum(first, len(envelope) - 1)], 0.0)
        return points.mean(axis=1).reshape(classes, thresholds), boxes


def _hits_needed(boxes: np.ndarray) -> np.ndarray:
    """(classes, 101): the fewest hits whose recall hits/boxes, in floating point, is at least the recall point."""
    n = np.maximum(boxes, 1)[:, None]
    needed = np.ceil(RECALL_POINTS * n)
    needed -= (needed >= 1) & ((needed - 1) / n >= RECALL_POINTS)
    needed += needed / n < RECALL_POINTS
    return needed.astype(np.int64)


def _greedy(overlap: np.ndarray, ignore: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Match the detections of one image and class as COCO does.

    Each detection takes the free box of highest IoU, the last among equals. It takes an ignored box only where no other
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
        # +2 puts every box that counts before every ignored one; reversed, so that argmax finds the last of equals.
        rank = np.where(fits, overlap[d, boxes] + 2.0 * ~ignore[boxes], -1.0)[:, ::-1]
        best = boxes[len(boxes) - 1 - rank.argmax(axis=1)]
        found = fits.any(axis=1)
        matched[d] = found
        ignored[d] = found & ignore[best]
        free[every[found], best[found]] = False
    return matched, ignored


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute the IoU of every pair of boxes.

    The function computes widths and heights first, as pycocotools does, so that the result is equal to the last bit.

    Args:
        a: (n, 4) corners [x1, y1, x2, y2], px.
        b: (m, 4) corners, px.

    Returns:
        (n, m) IoU in [0, 1].
    """
    aw, bw = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum((a[:, :2] + aw)[:, None], (b[:, :2] + bw)[None])
    sides = high - low
    both = np.where((sides > 0).all(axis=2), sides[..., 0] * sides[..., 1], 0.0)
    union = (aw[:, 0] * aw[:, 1])[:, None] + (bw[:, 0] * bw[:, 1])[None] - both
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(both > 0, both / union, 0.0)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _table(values, columns: int, what: str) -> np.ndarray:
    table = np.asarray(values, dtype=np.float64)
    if table.size == 0:
        return np.zeros((0, columns))
    if table.ndim != 2 or table.shape[1] != columns:
        raise InputError(f"{what}: must have shape (n, {columns}), not {table.shape}")
    return table


def _joined(parts: List[np.ndarray], dtype) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype=dtype)


def _stacked(parts: List[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros((0, len(IOU_THRESHOLDS)), dtype=bool)


def _mean(values: np.ndarray) -> Optional[float]:
    return float(values.mean()) if values.size else None


def _pair(precisions: List[float], boxes: int) -> Tuple[Optional[float], Optional[float]]:
    return (precisions[0], sum(precisions) / len(precisions)) if boxes else (None, None)
