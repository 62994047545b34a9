"""Network output to boxes: NMS in numpy, with the same numbers as Ultralytics' `non_max_suppression`, without torch."""

from __future__ import annotations

from typing import Sequence, Tuple

import numpy as np

from edgeprune_device.output import END2END, checked

__all__ = ["detections"]

_MAX_CANDIDATES = 30_000  # before NMS, as Ultralytics' max_nms

_CLASS_OFFSET = 7680  # px between classes, so that one NMS serves all of them; Ultralytics' max_wh

_NMS_BLOCK = 512  # candidates at a time

_PAIRS = 1 << 18  # compared at a time; bounds the memory, also for a broken model


def detections(
    outputs: Sequence[np.ndarray],
    kind: str,
    *,
    classes: int,
    conf: float,
    iou: float = 0.7,
    max_det: int = 300,
    multi_label: bool = False,
    agnostic: bool = False,
) -> np.ndarray:
    """Turn network outputs into detections.

    Args:
        outputs: Outputs of the network; the first one is read.
        kind: Meaning of that output (see output.py): raw as YOLOv8 exports it, or end to end, whose rows are only
            filtered.
        classes: Number of classes.
        conf: Lowest score of a detection.
        iou: IoU above which NMS removes the weaker of two boxes.
        max_det: Most detections that are returned.
        multi_label: Return one detection for each class above `conf`, as Ultralytics' val does, instead of the best
            class only.
        agnostic: Let boxes of different classes suppress each other.

    Returns:
        (n, 6) float32 [x1, y1, x2, y2, score, class], network px, best score first.

    Raises:
        InputError: The output has a shape that `kind` does not have.
    """
    out = checked(np.asarray(outputs[0]), kind, classes)
    if kind == END2END:
        rows = out[0].astype(np.float32)
        return rows[rows[:, 4] > conf][:max_det]
    with np.errstate(all="ignore"):  # a broken model's NaN is above nothing and overlaps nothing
        found = _candidates(out[0], conf, multi_label and classes > 1)
        kept = _nms(found[:4] + found[5] * np.float32(0 if agnostic else _CLASS_OFFSET), iou, max_det)
    return np.ascontiguousarray(found[:, kept].T)


def _candidates(raw: np.ndarray, conf: float, multi_label: bool) -> np.ndarray:
    """(4+nc, N) -> (6, n), corner boxes above conf. It filters first, because most of N is background."""
    keep = np.flatnonzero(raw[4:].max(axis=0) > conf)
    if not len(keep):
        return np.empty((6, 0), dtype=np.float32)
    picked = raw.take(keep, axis=1).astype(np.float32, copy=False)
    scores = picked[4:]
    if multi_label:
        box, label = np.nonzero((scores > conf).T)
        picked, score = picked[:4, box], scores[label, box]
    else:
        label, score = scores.argmax(axis=0), scores.max(axis=0)
    order = np.argsort(-score, kind="stable")[:_MAX_CANDIDATES]
    found = np.empty((6, len(order)), dtype=np.float32)
    half = picked[2:4] / 2
    found[:2], found[2:4] = (picked[:2] - half)[:, order], (picked[:2] + half)[:, order]
    found[4], found[5] = score[order], label[order]
    return found


def _nms(boxes: np.ndarray, iou: float, max_det: int) -> np.ndarray:
    """Greedy NMS.

    Args:
        boxes: (4, n) float32 corners, best score first.
        iou: Overlap above which the weaker box is removed.
        max_det: Most boxes that are kept.

    Returns:
        Indices of the kept boxes.
    """
    kept = np.empty(0, dtype=np.int64)
    for start in range(0, boxes.shape[1], _NMS_BLOCK):
        # A kept box is kept again beside boxes of lower scores, and suppresses those of the next block.
        tried = np.concatenate([kept, np.arange(start, min(start + _NMS_BLOCK, boxes.shape[1]))])
        better, worse = _overlaps(boxes[:, tried], iou)
        kept = tried[_survivors(len(tried), better, worse)][:max_det]
        if len(kept) == max_det:
            break
    return kept


def _overlaps(boxes: np.ndarray, iou: float) -> Tuple[np.ndarray, np.ndarray]:
    """Find the pairs of boxes that overlap by more than `iou`.

    A box's partners begin shortly right of its own left edge, so among boxes sorted by left edge only near ones are
    compared.

    Args:
        boxes: (4, n) corners, best score first.
        iou: The threshold.

    Returns:
        (indices of the better boxes, indices of the worse boxes), one entry a pair.
    """
    order = np.argsort(boxes[0])
    x1, y1, x2, y2 = boxes[:, order]
    width = x2 - x1
    area = width * (y2 - y1)
    # Overlap > iou * area of the left box, so at least that share of its width: the right box begins in the rest, in
    # any rounding. Areas near float32's smallest number prove nothing; there any overlap counts.
    reach = x1 + width * np.where(area > 1e-30, 1.00001 - iou, 1.00001)
    rank = np.arange(len(order))
    partners = np.maximum(np.searchsorted(x1, reach, side="right") - rank - 1, 0)
    step = max(_PAIRS // max(int(partners.max()), 1), 1)
    hits = []
    for start in range(0, len(order), step):
        ranks, counts = rank[start : start + step], partners[start : start + step]
        i = np.repeat(ranks, counts)
        j = np.arange(len(i)) + np.repeat(ranks + 1 + counts - np.cumsum(counts), counts)
        w = np.minimum(x2[i], x2[j]) - x1[j]
        h = np.minimum(y2[i], y2[j]) - np.maximum(y1[i], y1[j])
        both = np.maximum(w, 0) * np.maximum(h, 0)
        # Quotient in float32, comparison in float64, as torchvision: 0.6 in float32 is above 0.6.
        hit = (both / (area[i] + area[j] - both)).astype(np.float64) > iou
        hits.append((order[i[hit]], order[j[hit]]))
    one, other = (np.concatenate(side) for side in zip(*hits))
    return np.minimum(one, other), np.maximum(one, other)


def _survivors(n: int, better: np.ndarray, worse: np.ndarray) -> np.ndarray:
    """Indices of 0..n-1 that greedy suppression leaves, given the pairs (better, worse) that overlap.

    The function works in rounds: a box that no remaining better box overlaps stays, and suppresses the worse ones. A
    few rounds settle real images.
    """
    gone = np.zeros(n, dtype=bool)
    while len(better):
        stays = np.ones(n, dtype=bool)
        stays[worse] = False
        gone[worse[stays[better]]] = True
        unsettled = ~(gone[better] | gone[worse])
        better, worse = better[unsettled], worse[unsettled]
    return np.flatnonzero(~gone)
