"""Label files: the path of an image's label file, and its boxes. The rows are cached (memory.py)."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from edgeprune_device.errors import InputError, reason

from edgeprune.data import memory
from edgeprune.tasks import DETECT, Task

__all__ = ["Rows", "beside", "path_of", "read", "read_all", "refuse_foreign"]

#: (n, width of the task) float64, normalised to the size of the image; for detection [class, cx, cy, w, h].
Rows = npt.NDArray[np.float64]

#: Part of the cache key; increase it when the reader gives different rows for the same file.
_VERSION = "1"
_IMAGES, _LABELS = f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}"


def path_of(picture: Path) -> Path:
    """The label file of an image, by Ultralytics' rule: the last `images` in the path becomes `labels`."""
    return Path(_path_of(str(picture)))


def _path_of(picture: str) -> str:
    before, separator, name = picture.rpartition(_IMAGES)
    return f"{before}{_LABELS if separator else ''}{os.path.splitext(name)[0]}.txt"


def beside(picture: Path) -> bool:
    """Whether a label file is in the image's own folder, where neither edgeprune nor Ultralytics reads it."""
    path = picture.with_suffix(".txt")
    return path != path_of(picture) and path.is_file()


def read_all(
    pictures: Iterable[Path], classes: int, keypoints: tuple[int, int] | None = None, task: Task = DETECT
) -> tuple[dict[Path, Rows], set[Path]]:
    """Read and check the label files of images.

    Args:
        pictures: The images.
        classes: The number of classes.
        keypoints: (count, dimensions) of pose labels, of which only the boxes are read; None for other labels.
        task: The task of the labels.

    Returns:
        ({image: its rows}, the images without a label file).

    Raises:
        InputError: A label is malformed (file and line).
    """
    fact = f"labels {_VERSION} {classes} {keypoints}" + ("" if task is DETECT else f" {task.name}")
    paths = {picture: _path_of(str(picture)) for picture in pictures}
    keys = {picture: _key(fact, path) for picture, path in paths.items()}
    known = memory.recall({key for key in keys.values() if key})
    missing = {picture for picture, key in keys.items() if key is None}
    labels, learned = {}, {}
    for picture, key in keys.items():
        remembered = known.get(key) if key else None
        if remembered is not None and len(remembered) % (8 * task.width) == 0:
            labels[picture] = np.frombuffer(remembered).reshape(-1, task.width)
        elif key is None:
            labels[picture] = np.zeros((0, task.width))
        else:
            labels[picture] = read(Path(paths[picture]), classes, keypoints, task)
            if key:
                learned[key] = labels[picture].tobytes()
    memory.keep(learned)
    return labels, missing


def refuse_foreign(labels: Mapping[Path, Rows], task: Task) -> None:
    """Refuse a data set whose labels are of another task: every line of every file has that task's number of values.

    Args:
        labels: The result of `read_all` for all images of the data set.
        task: The task of the network.

    Raises:
        InputError: The labels are of another task.
    """
    files = [path_of(picture) for picture, rows in labels.items() if len(rows)]
    for count, objects in task.foreign.items():
        if files and all(_has_only(file, count) for file in files):
            raise InputError(
                f"{files[0]}: every label of the data set has {count} values, as for {objects}, but the network is for "
                f"{task.objects}; give the labels of its own task"
            )


def _has_only(file: Path, count: int) -> bool:
    """Whether every line of a label file has this number of values."""
    try:
        lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError:  # the rows were remembered, and the file has gone
        return False
    return all(len(line.split()) in (0, count) for line in lines)


def _key(fact: str, path: str) -> bytes | None:
    """The cache key of a label file; empty if its rows may not be cached, None if the file does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (memory.identity(fact, status) or b"") if stat.S_ISREG(status.st_mode) else None


def read(path: Path, classes: int, keypoints: tuple[int, int] | None = None, task: Task = DETECT) -> Rows:
    """Read and check one label file; see `read_all` for the arguments and errors."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: the labels cannot be read ({reason(error)})") from error
    posed = 5 + math.prod(keypoints) if keypoints else None
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1)]
    rows, widths = set(), set()
    for number, words in lines:
        if words:
            words = words[:5] if len(words) == posed else words
            rows.add(tuple(_row(words, path, number, classes, task)))
            widths.add(len(words) > 5)
    if len(widths) == 2:
        raise InputError(f"{path}: boxes and polygons in one file, which Ultralytics skips; convert all to boxes")
    # A duplicate box counts once, as in Ultralytics.
    return np.array(sorted(rows), dtype=np.float64) if rows else np.zeros((0, task.width))


def _row(words: list[str], path: Path, number: int, classes: int, task: Task) -> list[float]:
    try:
        values = [float(v) for v in words]
    except ValueError:
        raise InputError(f"{path}:{number}: invalid label (found {_shown(words)}, expected numbers)") from None
    if expected := task.miscounted(len(values)):
        raise InputError(f"{path}:{number}: wrong number of values (found {len(values)}, expected {expected})")
    if not all(map(math.isfinite, values)):
        raise InputError(f"{path}:{number}: coordinate not finite (found {_shown(words)})")
    if values[0] != int(values[0]) or not 0 <= values[0] < classes:
        raise InputError(f"{path}:{number}: class out of range (found {values[0]:g}, expected 0 to {classes - 1})")
    if min(values[1:]) < -0.01 or max(values[1:]) > 1.01:
        raise InputError(
            f"{path}:{number}: coordinates out of range (found {_shown(words)}, expected 0 to 1); divide pixels by "
            "the size of the image"
        )
    try:
        return task.label(values)
    except ValueError as fault:
        raise InputError(f"{path}:{number}: {fault} (found {_shown(words)})") from None


def _shown(words: list[str]) -> str:
    return repr(" ".join(words)[:60])
