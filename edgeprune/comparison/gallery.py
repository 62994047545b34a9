"""Chooses the images in which a model loses most objects, with the detections of every model.

A detection finds an object of its class with IoU >= 0.5; the most confident detections are matched first. The module
does not depend on models or on drawing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
from edgeprune_device.vision import detect, tasks
from edgeprune_device.vision.task import Task
from typing_extensions import NotRequired

#: The least IoU at which a detection finds an object.
IOU = 0.5
#: [class, box] of a labelled object, [class, confidence, box] of a detection; the box has the columns of the task, for
#: detection x1, y1, x2, y2, px.
Box = list[float]
#: A table of boxes, one per row.
Boxes = npt.NDArray[Any]


class GalleryEntry(TypedDict):
    """One image of the gallery, with the detections of every model.

    Attributes:
        name: name of its file.
        path: its file.
        width: width, px.
        height: height, px.
        truth: the labelled objects.
        lost: number of objects that the first model finds and the last does not.
        gained: number of objects that the last model finds and the first does not.
        lost_truth: indices of the lost objects.
        gained_truth: indices of the gained objects.
        found: {model: its detections}.
    """

    name: str
    path: str
    width: int
    height: int
    truth: list[Box]
    lost: int
    gained: int
    lost_truth: list[int]
    gained_truth: list[int]
    found: dict[str, list[Box]]


class Gallery(TypedDict):
    """The images in which a model loses most objects.

    Attributes:
        conf: least confidence of a detection that counts.
        iou: least IoU at which a detection finds an object.
        first: name of the reference model.
        last: name of the model whose losses are counted.
        pictures: the images, those with the most lost objects first.
        task: name of the task; absent: detection.
    """

    conf: float
    iou: float
    first: str
    last: str
    pictures: list[GalleryEntry]
    task: NotRequired[str]


def choose(
    pictures: Sequence[Path],
    truths: Sequence[Boxes],
    shapes: Sequence[tuple[int, int]],
    shown: Mapping[str, Sequence[Boxes]],
    count: int,
    *,
    conf: float,
    task: Task = detect.TASK,
) -> Gallery:
    """Choose the images in which the last model loses most objects that the first finds, most losses first.

    Among images with equally many losses, those with fewer gains and then those with more objects come first.

    Args:
        pictures: image files.
        truths: for each image (m, 1 + columns) labels of the task, px.
        shapes: for each image (height, width), px.
        shown: {model: for each image (n, columns + 2) rows of the task, px}.
        count: number of images to choose.
        conf: least confidence of a detection that counts; `shown` holds no others.
        task: the task.

    Returns:
        The chosen images with labels, detections, and lost and gained objects.
    """
    first, last = next(iter(shown)), next(reversed(list(shown)))
    rows = []
    for i, truth in enumerate(truths):
        # Use the rounded boxes that the page draws, so that a recount gives the same numbers.
        before, after = (objects_found(_labelled(truth), _detected(shown[name][i]), task) for name in (first, last))
        rows.append((sorted(before - after), sorted(after - before)))
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i][0]), len(rows[i][1]), -len(truths[i]), i))
    return {
        "task": task.name,
        "conf": conf,
        "iou": IOU,
        "first": first,
        "last": last,
        "pictures": [
            {
                "name": pictures[i].name,
                "path": str(pictures[i]),
                "width": int(shapes[i][1]),
                "height": int(shapes[i][0]),
                "truth": _labelled(truths[i]),
                "lost": len(rows[i][0]),
                "gained": len(rows[i][1]),
                "lost_truth": rows[i][0],
                "gained_truth": rows[i][1],
                "found": {name: _detected(per[i]) for name, per in shown.items()},
            }
            for i in order[:count]
        ],
    }


def objects_found(truth: list[Box], detections: list[Box], task: Task = detect.TASK) -> set[int]:
    """The indices of the objects that the detections find (`match`)."""
    return {i for i in match(truth, detections, task=task) if i is not None}


def match(truth: list[Box], detections: list[Box], least: float = IOU, *, task: Task = detect.TASK) -> list[int | None]:
    """Match detections to labelled objects.

    The most confident detection chooses first: the free object of its class with the highest IoU, of `least` or more.

    Args:
        truth: [class, box] of each object.
        detections: [class, confidence, box] of each detection.
        least: smallest IoU of a match.
        task: the task.

    Returns:
        For each detection the index of its object; None for a false alarm.
    """
    matched: list[int | None] = [None] * len(detections)
    if not truth or not detections:
        return matched
    overlap = task.iou(boxes_of(detections, task), boxes_of(truth, task))
    free = np.ones(len(truth), dtype=bool)
    same = np.array([box[0] for box in detections])[:, None] == np.array([box[0] for box in truth])
    for i in np.argsort([-box[1] for box in detections], kind="stable"):
        reach = np.where(same[i] & free, overlap[i], -1.0)
        best = int(reach.argmax())
        if reach[best] >= least:
            free[best] = False
            matched[i] = best
    return matched


def task_of(gallery: Gallery) -> Task:
    """The task of a gallery's boxes; a gallery of an older version does not state it."""
    return tasks.get(gallery.get("task", detect.TASK.name))


def boxes_of(boxes: list[Box], task: Task) -> Boxes:
    """Return the boxes (n, columns) float, without class and confidence."""
    return np.array([box[-len(task.columns) :] for box in boxes], dtype=float)


def _labelled(truth: Boxes) -> list[Box]:
    return [[int(c), *_rounded(box)] for c, *box in truth.tolist()]


def _detected(rows: Boxes) -> list[Box]:
    return [[int(c), round(score, 3), *_rounded(box)] for *box, score, c in rows.tolist()]


def _rounded(box: Sequence[float]) -> Box:
    return [round(float(v), 1 if i < 4 else 4) for i, v in enumerate(box)]  # px, then the angle, radians
