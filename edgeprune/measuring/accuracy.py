"""Accuracy of models in any form, by one evaluator: that of `edgeprune_device`, on letterboxed images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from edgeprune_device.vision import accuracy, evaluation, preprocess
from edgeprune_device.vision.accuracy import Accuracy, Matches
from edgeprune_device.vision.postprocess import detections

from edgeprune.data.dataset import Dataset

#: Confidence from which a detection is shown and counts as an object found; the default of `yolo predict`.
SHOWN_CONF = 0.25

#: The Exif tag.
_ORIENTATION = 0x0112


def evaluate(
    session,
    dataset: Dataset,
    pictures: Sequence[Path],
    imgsz: int,
    progress: Callable[[int], None] | None = None,
    shown: list[np.ndarray] | None = None,
) -> tuple[Accuracy, Matches]:
    """COCO mAP of a session on labelled images, and the matches behind it (for bootstrap intervals and subsets).

    Args:
        session: Runs the model at `imgsz`; its `kind` is the meaning of the output (sessions.py).
        dataset: The data set of the images.
        pictures: The images.
        imgsz: The side of the square network input, px.
        progress: Called with the number of images done.
        shown: A list to which the detections of each image are appended, as `yolo predict` would show them, of the same
            inference: (n, 6) [x1, y1, x2, y2, score, class], image px, score >= SHOWN_CONF.
    """
    classes = list(dataset.names)
    items = [(p.name, str(p), true_boxes(dataset, p)) for p in pictures]

    def seen(outputs, box):
        shown.append(box.undo(detections(outputs, session.kind, classes=len(classes), conf=SHOWN_CONF)))

    found_accuracy, found = evaluation.evaluate(
        session,
        items,
        imgsz=imgsz,
        classes=classes,
        kind=session.kind,
        progress=progress,
        seen=None if shown is None else seen,
    )
    return found_accuracy, accuracy.match(found, [true_boxes for _, _, true_boxes in items], classes)


def score(session, dataset: Dataset, pictures: Sequence[Path], imgsz: int) -> float:
    """mAP50-95 for choices between models.

    Args:
        session: See `evaluate`.
        dataset: The data set of the images.
        pictures: The images.
        imgsz: The side of the square network input, px.

    Returns:
        NaN where the images have no labelled box.
    """
    found = evaluate(session, dataset, pictures, imgsz)[0].map50_95
    return float("nan") if found is None else found


def upright_shape(picture: Path) -> tuple[int, int]:
    """(height, width) of an image, px, after its EXIF orientation has been applied.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        with preprocess.opened(picture) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
    except Exception:  # a damaged file makes Pillow's plug-ins raise almost anything: decode() raises the error to show
        height, width = preprocess.decode(picture).shape[:2]
        return height, width
    # Stored on its side: decode() turns the image, and the labels refer to the turned one.
    return (width, height) if turned else (height, width)


def true_boxes(dataset: Dataset, picture: Path) -> np.ndarray:
    """(n, 5) float64 [class, x1, y1, x2, y2], image px: the labelled boxes of an image."""
    return dataset.truth(picture, upright_shape(picture))


def bootstrap(a: Matches, b: Matches, score: Callable[[Accuracy], float], *, samples: int = 1000, seed: int = 0):
    """Paired bootstrap over images of score(a) - score(b).

    Args:
        a: Matches of one model.
        b: Matches of the other, of the same images in the same order.
        score: The figure to compare, of an Accuracy.
        samples: The number of draws.
        seed: Of the draws.

    Returns:
        (difference, low, high): the difference and its 95 % percentile interval.
    """
    rng = np.random.default_rng(seed)
    count = a.pictures
    drawn = []
    for _ in range(samples):
        index = rng.integers(count, size=count)
        drawn.append(score(a.accuracy(index)) - score(b.accuracy(index)))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return score(a.accuracy()) - score(b.accuracy()), float(low), float(high)
