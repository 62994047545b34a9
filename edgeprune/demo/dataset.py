"""Writes scenes as an Ultralytics data set, completely or not at all.

Each image has a scene number (seed). The ranges below do not overlap, so no image is used for both training and
measurement. The module does not depend on models.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
from edgeprune_device.errors import InputError

from edgeprune.demo.scenes import NAMES, VERSION, render

SIZE = 320  # pixels
JPEG_QUALITY = 92
RANGE = 1_000_000  # seeds in each range
WEIGHTS_SEED = 1_000_000  # training of the built-in weights
TUNE_SEED = 2_000_000  # fine-tuning in `edgeprune build` without --data
VAL_SEED = 3_000_000  # validation: never used for training
CHECK_SEED = 4_000_000  # the val split of train.py, so that VAL_SEED influences no training
_MARKER = "edgeprune-demo.json"


def _write_scene(images: Path, labels: Path, seed: int, task: str) -> int:
    """Write one image and its label file; return the number of boxes."""
    picture, boxes = render(seed, SIZE, task)
    name = f"scene-{seed:08d}"
    ok, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not ok:
        raise RuntimeError(f"OpenCV: cannot encode scene {seed} as JPEG; install a build with JPEG support")
    (images / f"{name}.jpg").write_bytes(data.tobytes())
    rows = (" ".join([f"{int(cls)}", *(f"{value:.6f}" for value in values)]) + "\n" for cls, *values in boxes.tolist())
    (labels / f"{name}.txt").write_text("".join(rows))
    return len(boxes)


def _write_range(job: tuple[Path, Path, int, int, str]) -> int:
    images, labels, first, stop, task = job
    cv2.setNumThreads(1)
    return sum(_write_scene(images, labels, seed, task) for seed in range(first, stop))


def _write_split(root: Path, split: str, first: int, count: int, processes: int, task: str) -> int:
    """Write all scenes of a split; return the number of boxes."""
    images, labels = root / "images" / split, root / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    jobs = [(images, labels, seed, min(seed + 50, first + count), task) for seed in range(first, first + count, 50)]
    if processes <= 1:
        return sum(map(_write_range, jobs))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return sum(pool.map(_write_range, jobs))


def _yaml() -> str:
    """The data.yaml. Without `path`, Ultralytics uses the folder of the file, so the data set can be moved."""
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(NAMES))
    return f"train: images/train\nval: images/val\nnames:\n{names}"


def _sync(root: Path) -> None:
    """Sync everything to the disk before the rename marks it as complete."""
    for path in [root, *root.rglob("*")]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _check_seeds(train: range, val: range) -> None:
    if train.start < val.stop and val.start < train.stop:
        raise InputError(f"demo scenes: the seeds overlap (training {train}, validation {val}); choose separate ranges")


def _parameters(folder: Path) -> dict[str, Any] | None:
    """The parameters of the set in a folder; None if there is none."""
    try:
        parameters: dict[str, Any] = json.loads((folder / _MARKER).read_text())["parameters"]
    except (OSError, ValueError, KeyError):
        return None
    return parameters


def boxes(data: Path) -> dict[str, int]:
    """The number of labelled objects of each split of a set that `write` made.

    Example: boxes(Path("…/data.yaml")) -> {"train": 12_000, "val": 8_000}.
    """
    counts: dict[str, int] = json.loads((data.parent / _MARKER).read_text())["boxes"]
    return counts


def write(
    folder: Path,
    train: int,
    val: int,
    *,
    task: str = "detect",
    first_train_seed: int = TUNE_SEED,
    first_val_seed: int = VAL_SEED,
    processes: int = 1,
) -> Path:
    """Write `train` + `val` scenes of 320 px into `folder`.

    A folder that already holds a complete set with the same parameters is used as it is; one with other parameters is
    replaced. The set is written next to `folder` and renamed, so an interrupted run leaves nothing that looks complete.

    Example: write(Path("runs/demo-data"), 600, 400) -> runs/demo-data/data.yaml, images/{train,val}/*.jpg, labels/….

    Args:
        folder: The folder of the set.
        train: The number of training scenes.
        val: The number of validation scenes.
        task: The task of the labels, a key of `scenes.LABELS`.
        first_train_seed: The first seed of the training scenes.
        first_val_seed: The first seed of the validation scenes.
        processes: The number of drawing processes.

    Returns:
        The data.yaml.

    Raises:
        InputError: The two ranges of seeds overlap, or `folder` holds files that this function did not write.
    """
    folder = Path(folder).absolute()
    _check_seeds(range(first_train_seed, first_train_seed + train), range(first_val_seed, first_val_seed + val))
    wanted = {
        "schema_version": 1,
        "scenes_version": VERSION,
        "size_px": SIZE,
        "train": train,
        "val": val,
        "names": list(NAMES),
        "first_train_seed": first_train_seed,
        "first_val_seed": first_val_seed,
        "jpeg_quality": JPEG_QUALITY,
    }
    if task != "detect":  # sets of former releases name no task
        wanted["task"] = task
    if _parameters(folder) == wanted:
        return folder / "data.yaml"
    if folder.exists() and not (folder / _MARKER).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: holds other files; name an empty or a new folder for the demo data set")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        box_counts = {
            "train": _write_split(work, "train", first_train_seed, train, processes, task),
            "val": _write_split(work, "val", first_val_seed, val, processes, task),
        }
        (work / "data.yaml").write_text(_yaml())
        (work / _MARKER).write_text(json.dumps({"parameters": wanted, "boxes": box_counts}, indent=1) + "\n")
        work.chmod(0o755)
        _sync(work)
        if folder.exists():
            shutil.rmtree(folder)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder / "data.yaml"
