"""Accuracy of models in any form, on letterboxed images, from the one evaluator in `edgeprune_device`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from edgeprune_device.vision import evaluation, preprocess
from edgeprune_device.vision.accuracy import Accuracy, ImageMatches, Matches, match_image
from edgeprune_device.vision.evaluation import Detected
from edgeprune_device.vision.postprocess import CONF
from edgeprune_device.vision.preprocess import Letterbox

from edgeprune import workers
from edgeprune.data.dataset import Dataset
from edgeprune.measuring.sessions import Session

#: The matches of an image, and its detections to be drawn.
_Judged = tuple[ImageMatches, npt.NDArray[np.float32] | None]


def evaluate(
    session: Session,
    dataset: Dataset,
    pictures: Sequence[Path],
    imgsz: int | Sequence[int],
    progress: Callable[[int], None] | None = None,
    shown: list[npt.NDArray[np.float32]] | None = None,
    warn: Callable[[str], None] | None = None,
) -> tuple[Accuracy, Matches]:
    """Compute the COCO mAP of a session on labelled images, and the matches for bootstrap intervals and subsets.

    The images are distributed over one single-threaded process per core; the result does not depend on their number.

    Args:
        session: Runs the model at `imgsz`.
        dataset: The data set of the images.
        pictures: The images.
        imgsz: The side of a square input, or (height, width), px.
        progress: Called with the number of images done.
        shown: A list that receives the detections of each image from the same inference, as `yolo predict` would show
            them: rows of the task, image px, score >= `postprocess.CONF`.
        warn: Receives one line if a process was killed and the evaluation continued without it; None raises a
            RuntimeWarning.
    """
    names, task = list(dataset.names), dataset.task.on_device
    local = session

    def begin() -> None:
        nonlocal local
        torch.set_num_threads(1)
        local = session.in_worker()

    def run(picture: Path) -> _Judged:
        image = evaluation.detect(
            local, str(picture), picture.name, imgsz=imgsz, classes=len(names), kind=session.kind,
            layout=session.layout, task=task,
        )  # fmt: skip
        return judge(picture, image)

    def judge(picture: Path, image: Detected) -> _Judged:
        drawn = None
        if shown is not None:
            drawn = task.undo(task.detections(image.outputs, session.kind, classes=len(names), conf=CONF), image.box)
        return match_image(image.rows, dataset.truth(picture, image.box.shape), names, picture.name, task), drawn

    if session.batch > 1:
        results = _batched(session, dataset, pictures, imgsz, judge)
    else:
        results = workers.ordered(run, pictures, begin=begin, warn=warn)
    matched: list[ImageMatches] = []
    for matches, drawn in results:
        matched.append(matches)
        if shown is not None and drawn is not None:
            shown.append(drawn)
        if progress is not None:
            progress(len(matched))
    joined = Matches.of(matched, names)
    return joined.accuracy(), joined


def _batched(
    session: Session,
    dataset: Dataset,
    pictures: Sequence[Path],
    imgsz: int | Sequence[int],
    judge: Callable[[Path, Detected], _Judged],
) -> Iterator[_Judged]:
    """Yield the results of a session that runs several images at once.

    While the GPU computes a batch, threads decode the next batches and match the last ones, in libraries that release
    the interpreter's lock.
    """

    classes, task = len(dataset.names), dataset.task.on_device

    def load(picture: Path) -> tuple[npt.NDArray[np.float32], Letterbox]:
        return preprocess.letterbox(preprocess.decode(picture), imgsz, session.layout)

    def one(picture: Path, outputs: list[npt.NDArray[Any]], box: Letterbox) -> _Judged:
        return judge(picture, evaluation.detected(outputs, box, classes=classes, kind=session.kind, task=task))

    groups = [pictures[start : start + session.batch] for start in range(0, len(pictures), session.batch)]
    with ThreadPoolExecutor(workers.wanted()) as pool:
        loading = deque([pool.submit(load, p) for p in group] for group in groups[:2])
        judging: deque[list[Future[_Judged]]] = deque()
        for i, group in enumerate(groups):
            loaded = [future.result() for future in loading.popleft()]
            if i + 2 < len(groups):
                loading.append([pool.submit(load, p) for p in groups[i + 2]])
            outputs = session.infer(np.concatenate([x for x, _ in loaded]))
            parts = [[output[k : k + 1] for output in outputs] for k in range(len(group))]
            judging.append([pool.submit(one, p, part, box) for p, part, (_, box) in zip(group, parts, loaded)])
            if len(judging) > 1:
                yield from (future.result() for future in judging.popleft())
        for futures in judging:
            yield from (future.result() for future in futures)


def score(
    session: Session,
    dataset: Dataset,
    pictures: Sequence[Path],
    imgsz: int | Sequence[int],
    warn: Callable[[str], None] | None = None,
) -> float:
    """The mAP50-95 of a session, for choosing between models.

    Args:
        session: See `evaluate`.
        dataset: The data set of the images.
        pictures: The images.
        imgsz: The side of a square input, or (height, width), px.
        warn: See `evaluate`.

    Returns:
        The mAP50-95; NaN if the images have no labelled boxes.
    """
    map50_95 = evaluate(session, dataset, pictures, imgsz, warn=warn)[0].map50_95
    return float("nan") if map50_95 is None else map50_95


def true_boxes(dataset: Dataset, picture: Path) -> npt.NDArray[np.float64]:
    """The labelled boxes of an image, px (`Dataset.truth`)."""
    return dataset.truth(picture, dataset.shape(picture))


def interval(matches: Matches, *, samples: int = 1000, seed: int = 0) -> tuple[float, float] | None:
    """The bootstrap interval of a model's mAP50-95 over images.

    Args:
        matches: The matches of the model.
        samples: The number of draws.
        seed: The seed of the draws.

    Returns:
        (low, high): the 95 % percentile interval; None if the images have no labelled boxes.
    """
    rng = np.random.default_rng(seed)
    count = matches.pictures
    drawn = [matches.accuracy(rng.integers(count, size=count)).map50_95 for _ in range(samples)]
    known = [value for value in drawn if value is not None]
    if not known:
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def bootstrap(
    a: Matches, b: Matches, score: Callable[[Accuracy], float | None], *, samples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Paired bootstrap over images of score(a) - score(b).

    Args:
        a: Matches of one model.
        b: Matches of the other, on the same images in the same order.
        score: Returns the figure to compare; draws without a figure are ignored.
        samples: The number of draws.
        seed: The seed of the draws.

    Returns:
        (difference, low, high): the difference and its 95 % percentile interval.
    """
    rng = np.random.default_rng(seed)
    count = a.pictures

    def difference(index: npt.NDArray[np.int64] | None = None) -> float:
        of_a, of_b = score(a.accuracy(index)), score(b.accuracy(index))
        return float("nan") if of_a is None or of_b is None else of_a - of_b

    drawn = [difference(rng.integers(count, size=count)) for _ in range(samples)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return difference(), float(low), float(high)
