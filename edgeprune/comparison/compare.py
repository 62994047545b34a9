"""Measures models in one run, in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgeprune_device import clock
from edgeprune_device.errors import InputError
from edgeprune_device.machine.environment import Environment
from edgeprune_device.vision.accuracy import Accuracy

from edgeprune import versions
from edgeprune.comparison import gallery
from edgeprune.comparison.comparison import Comparison
from edgeprune.comparison.items import Item
from edgeprune.comparison.row import Row, accuracy_of
from edgeprune.data.dataset import Dataset, check_names
from edgeprune.measuring.accuracy import SHOWN_CONF, evaluate, upright_shape
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
    pictures: int = GALLERY,
    reproduce: Sequence[str] = (),
    progress: Callable[[float, str], None] = lambda fraction, what: None,
) -> Comparison:
    """Measure every item in one run.

    The figures are cost, latency in turns, and with a data set mAP, the objects found, and the stages around the
    network.

    Args:
        items: the models; the first is the reference.
        dataset: its validation images are used; None: cost and latency only.
        reports: rows of recorded reports, which follow the items unchanged but for their names.
        threads: threads of ONNX Runtime.
        rounds: number of turns of the timing.
        pictures: number of images in the gallery; 0: none.
        reproduce: shell lines that measure the same.
        progress: receives the fraction done and a line of text.

    Raises:
        InputError: there is nothing to compare, or the models have different classes.
    """
    if not items and not reports:
        raise InputError("compare: give at least one .pt, .onnx or .epb file, or a report")
    for item in items:
        if item.names != items[0].names:
            raise InputError(f"{item.name} and {items[0].name} have different classes; compare models of one data set")
    if dataset is not None and items:
        check_names(dataset, list(items[0].names))
    names = _unique([item.name for item in items] + [row.name for row in reports])
    took = _timed(items, names, dataset, threads, rounds, progress)
    rows, shown = [], {}
    for i, (name, item) in enumerate(zip(names, items)):
        accuracy, session = None, item.session()
        if dataset is not None:

            def told(done, name=name, i=i):
                total = len(dataset.val)
                progress(0.2 + 0.8 * (i + done / total) / len(items), f"{name} {done}/{total} pictures")

            shown[name] = []
            accuracy, _ = evaluate(session, dataset, dataset.val, item.imgsz, told, shown[name])
        rows.append(_row(item, name, took[name], accuracy, shown.get(name), session.description))
    rows += [Row(**{**vars(row), "name": name}) for row, name in zip(reports, names[len(items) :])]
    return Comparison(
        title=", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else ""),
        kind="compare",
        created=clock.wall(),
        reproduce=tuple(reproduce),
        data=None if dataset is None else about(dataset, dataset.overlap()),
        machine=machine(),
        items=tuple(rows),
        classes=items[0].names if items else (),
        gallery=shown_best(dataset, shown, pictures) if shown and pictures else None,
    )


def _unique(names: Sequence[str]) -> list[str]:
    """Add a number to each repeated name."""
    taken: dict[str, int] = {}
    found = []
    for name in names:
        taken[name] = taken.get(name, 0) + 1
        found.append(name if taken[name] == 1 else f"{name} ({taken[name]})")
    return found


def _timed(items, names, dataset, threads: int, rounds: int, progress) -> dict[str, dict]:
    """Return {name: Timing as JSON}."""
    took: dict[str, dict] = {}
    for size in dict.fromkeys(item.imgsz for item in items):  # models are timed in turns only on one input size
        group = {name: item.model for name, item in zip(names, items) if item.imgsz == size}
        kinds = {name: item.kind for name, item in zip(names, items)}
        progress(0.0, f"timing {len(group)} models at {size} px")
        val, classes = (dataset.val, len(dataset.names)) if dataset else ((), 0)
        timed = time_models(group, size, val, classes=classes, kinds=kinds, threads=threads, rounds=rounds)
        for name, timing in timed.items():
            took[name] = timing.to_json()
            if size != items[0].imgsz:
                took[name]["latency_ms"]["speedup"] = None
    return took


def _row(item: Item, name: str, took: dict, accuracy: Accuracy | None, shown, described: str) -> Row:
    return Row(
        name=name,
        path=str(item.path),
        sha256=item.sha256,
        imgsz=item.imgsz,
        size_bytes=item.size_bytes,
        layers=item.layers,
        **(item.cost.to_json() if item.cost else {}),
        **took,
        **accuracy_of(accuracy),
        objects_found=None if shown is None else sum(map(len, shown)),
        measured_with=described,
        caveat=item.caveat,
        head=item.head,
    )


def about(dataset: Dataset, train_in_val: int) -> dict[str, Any]:
    """Describe the validation images, as `Comparison.data` holds it.

    Args:
        dataset: the data set.
        train_in_val: number of validation images that are training images, too.
    """
    return {
        "path": str(dataset.path),
        "sha256": dataset.sha256,
        "pictures": len(dataset.val),
        "boxes": int(dataset.boxes(dataset.val).sum()),
        "train_in_val": train_in_val,
    }


def machine() -> dict[str, Any]:
    """Describe this machine, with the versions of the packages that figures depend on."""
    found = Environment.read().to_json()
    return {**found, "packages": {**found["packages"], **versions.of_packages()}}


def shown_best(dataset: Dataset, shown: Mapping[str, Sequence], count: int) -> dict[str, Any]:
    """Choose the images of the gallery (`gallery.choose`) among the validation images.

    Args:
        dataset: the data set.
        shown: {model: detections of each image}.
        count: number of images.
    """
    shapes = [upright_shape(picture) for picture in dataset.val]
    truths = [dataset.truth(picture, shape) for picture, shape in zip(dataset.val, shapes)]
    return gallery.choose(dataset.val, truths, shapes, shown, count, conf=SHOWN_CONF)
