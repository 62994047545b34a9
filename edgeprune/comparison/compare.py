"""Measures models in one run; their latencies are measured alternately."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from edgeprune_device import clock
from edgeprune_device.errors import InputError
from edgeprune_device.machine.environment import Environment
from edgeprune_device.progress import Progress, Say, silent
from edgeprune_device.vision.postprocess import CONF

from edgeprune import tasks, versions
from edgeprune.comparison import gallery
from edgeprune.comparison.comparison import Comparison
from edgeprune.comparison.facts import Machine, ValidationImages
from edgeprune.comparison.gallery import Boxes, Gallery
from edgeprune.comparison.items import Item
from edgeprune.comparison.row import Row, accuracy_of
from edgeprune.data.dataset import Dataset, check_names
from edgeprune.measuring.accuracy import evaluate, interval
from edgeprune.measuring.sessions import CPU
from edgeprune.measuring.timing import time_models

#: Default number of images in a gallery.
GALLERY = 12


def compare_items(
    items: Sequence[Item],
    dataset: Dataset | None,
    reports: Sequence[Row] = (),
    *,
    threads: int = 1,
    rounds: int = 40,
    device: torch.device = CPU,
    pictures: int = GALLERY,
    reproduce: Sequence[str] = (),
    progress: Progress = silent,
    warn: Say | None = None,
) -> Comparison:
    """Measure every item in one run.

    The figures are cost and latency; with a data set also mAP, the number of detections, and the time of the other
    stages.

    Args:
        items: the models; the first is the reference.
        dataset: the data set whose validation images are used; None measures cost and latency only.
        reports: rows of recorded reports, which follow the items; only their names may change.
        threads: number of ONNX Runtime's threads.
        rounds: number of rounds of the timing.
        device: device that evaluates checkpoints; ONNX files run on the CPU.
        pictures: number of images in the gallery; 0 for none.
        reproduce: shell commands that repeat the measurement.
        progress: receives the progress.
        warn: receives one line if the evaluation loses a process.

    Raises:
        InputError: there is nothing to compare, or the models have different classes.
    """
    if not items and not reports:
        raise InputError("compare: no models; pass at least one .pt, .onnx or .epb file, or a report")
    for item in items:
        if item.names != items[0].names:
            raise InputError(
                f"{item.name}: the classes differ from the classes of {items[0].name}; compare only models "
                "with the same classes"
            )
        if item.task != items[0].task:
            raise InputError(
                f"{item.name}: wrong task (found {item.task}, expected {items[0].task}, the task of {items[0].name}); "
                "compare models of one task"
            )
    if dataset is not None and items:
        check_names(dataset, list(items[0].names))
    names = _unique([item.name for item in items] + [row.name for row in reports])
    took = _timed(items, names, dataset, threads, rounds, progress)
    rows: list[Row] = []
    shown: dict[str, list[Boxes]] = {}
    for i, (name, item) in enumerate(zip(names, items)):
        figures: dict[str, Any] = {}
        session = item.session(device)
        if dataset is not None:
            shown[name] = []
            on_image = _counter(progress, name, (i, len(items)), len(dataset.val))
            accuracy, matches = evaluate(session, dataset, dataset.val, item.imgsz, on_image, shown[name], warn)
            figures = accuracy_of(accuracy, interval(matches) if dataset.val_total else None)
        rows.append(_row(item, name, took[name], figures, shown.get(name), session.description))
    rows += [replace(row, name=name) for row, name in zip(reports, names[len(items) :])]
    return Comparison(
        title=", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else ""),
        kind="compare",
        created=clock.wall(),
        reproduce=tuple(reproduce),
        data=None if dataset is None else about(dataset, dataset.overlap()),
        machine=machine(),
        items=tuple(rows),
        classes=items[0].names if items else (),
        gallery=shown_best(dataset, shown, pictures) if dataset is not None and shown and pictures else None,
    )


def _unique(names: Sequence[str]) -> list[str]:
    """Add a number to each repeated name."""
    taken: dict[str, int] = {}
    unique = []
    for name in names:
        taken[name] = taken.get(name, 0) + 1
        unique.append(name if taken[name] == 1 else f"{name} ({taken[name]})")
    return unique


def _counter(progress: Progress, name: str, place: tuple[int, int], total: int) -> Callable[[int], None]:
    """Return a function that counts a model's images and reports the progress over all models.

    Args:
        progress: receives the progress.
        name: name of the model.
        place: index of the model, and the number of models.
        total: number of images.
    """

    def count(done: int) -> None:
        progress(0.2 + 0.8 * (place[0] + done / total) / place[1], f"{name} {done}/{total} images")

    return count


def _timed(
    items: Sequence[Item], names: Sequence[str], dataset: Dataset | None, threads: int, rounds: int, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Return {name: Timing as JSON}."""
    if not items:
        return {}
    models: dict[str, bytes | Path] = {name: item.model for name, item in zip(names, items)}
    kinds = {name: item.kind for name, item in zip(names, items)}
    layouts = {name: item.layout for name, item in zip(names, items)}
    progress(0.0, f"timing {len(models)} models")
    val, classes = (dataset.val, len(dataset.names)) if dataset else ((), 0)
    task = tasks.get(items[0].task).on_device
    timed = time_models(
        models, val, classes=classes, kinds=kinds, layouts=layouts, task=task, threads=threads, rounds=rounds
    )
    return {name: timing.to_json() for name, timing in timed.items()}


def _row(
    item: Item, name: str, took: dict[str, Any], figures: dict[str, Any], shown: list[Boxes] | None, described: str
) -> Row:
    return Row(
        name=name,
        path=str(item.path),
        sha256=item.sha256,
        imgsz=item.imgsz.to_json(),
        size_bytes=item.size_bytes,
        layers=item.layers,
        parameters=item.cost.parameters if item.cost else None,
        macs=item.cost.macs if item.cost else None,
        channels=item.cost.channels if item.cost else None,
        **took,
        **figures,
        objects_found=None if shown is None else sum(map(len, shown)),
        measured_with=described,
        caveat=item.caveat,
        head=item.head,
    )


def about(dataset: Dataset, train_in_val: int) -> ValidationImages:
    """Describe the validation images, for `Comparison.data`.

    Args:
        dataset: the data set.
        train_in_val: number of validation images that are also training images.
    """
    return {
        "path": str(dataset.path),
        "sha256": dataset.sha256,
        "pictures": len(dataset.val),
        "total": dataset.val_total or len(dataset.val),
        "boxes": int(dataset.boxes(dataset.val).sum()),
        "train_in_val": train_in_val,
        "unlabelled": dataset.unlabelled,
        "damaged": {split: len(names) for split, names in dataset.damaged.items()},
    }


def machine() -> Machine:
    """Describe this machine, with the versions of the packages that affect the figures."""
    environment = Environment.read().to_json()
    return cast("Machine", {**environment, "packages": {**environment["packages"], **versions.of_packages()}})


def shown_best(dataset: Dataset, shown: Mapping[str, Sequence[Boxes]], count: int) -> Gallery:
    """Choose the images of the gallery (`gallery.choose`) among the validation images.

    Args:
        dataset: the data set.
        shown: {model: detections of each image}.
        count: number of images.
    """
    shapes = [dataset.shape(picture) for picture in dataset.val]
    truths = [dataset.truth(picture, shape) for picture, shape in zip(dataset.val, shapes)]
    return gallery.choose(dataset.val, truths, shapes, shown, count, conf=CONF, task=dataset.task.on_device)
