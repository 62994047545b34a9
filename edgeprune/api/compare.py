"""`ep.compare`: models side by side, measured in turns in one run."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from edgeprune_device.errors import InputError

from edgeprune.api.export import Exported
from edgeprune.api.source import Model, opened
from edgeprune.comparison import recorded
from edgeprune.comparison.compare import GALLERY, compare_items
from edgeprune.comparison.comparison import Comparison
from edgeprune.comparison.items import Item, of_model, open_item
from edgeprune.comparison.row import Row
from edgeprune.console.progress import Reporter
from edgeprune.data import dataset
from edgeprune.model import checkpoint
from edgeprune.model.threads import ready

#: A file (.pt, .onnx, .epb, .json), the id of a collected report, "reports", a model, an export; or (name, item).
Compared: TypeAlias = "Model | Exported | tuple[str, Model | Exported]"

#: The path of a model that is in no file.
IN_MEMORY = Path("(in memory)")


def compare(
    *items: Compared,
    data: str | Path | None = None,
    imgsz: int | None = None,
    threads: int = 1,
    rounds: int = 40,
    pictures: int = GALLERY,
    quiet: bool = False,
) -> Comparison:
    """Compare models by cost, latency, mAP and objects found; the first item is the reference for the others.

    Example: `ep.compare("best.pt", pruned, data="data.yaml").save_html("report.html")`

    Args:
        items: each a file (.pt, .onnx, .epb, or a bench report in .json), the id of a collected report, "reports" for
            all of them, a model, an `Exported`, or a pair `(name, item)` that gives one of these a name.
        data: the data set whose validation images mAP is measured on; None: cost and latency only.
        imgsz: network input of checkpoints, px; None: the size that the weights were trained at.
        threads: threads of ONNX Runtime on this CPU.
        rounds: number of turns of the timing.
        pictures: number of images in the page's gallery; 0: no gallery.
        quiet: print warnings only.

    Returns:
        The `Comparison`, which prints as a table and saves itself as a page or as JSON.

    Raises:
        InputError: an argument is invalid, a file is missing or damaged, or the models have different classes.
        SignatureError: a bundle is not trusted, or a report was changed after it was signed.
    """
    if threads < 1 or rounds < 1:
        raise InputError("--threads and --rounds must be at least 1")
    if pictures < 0:
        raise InputError(f"--pictures {pictures}: must be 0 (none) or more")
    judges = dataset.load(data) if data is not None else None
    reports: list[Row] = []
    models: list[Item] = []
    for item in items:
        if isinstance(item, tuple) and len(item) != 2:
            raise InputError(f"a named item is (name, item), not {len(item)} things")
        name, thing = item if isinstance(item, tuple) else (None, item)
        if isinstance(thing, (str, Path)) and recorded.is_recorded(str(thing)):
            rows = recorded.recorded(str(thing))
            reports += [replace(row, name=f"{name} *") for row in rows] if name else rows
        else:
            models += _items(thing, name, imgsz)
    with ready(Reporter(quiet=quiet)).stage("compare") as progress:
        return compare_items(
            models, judges, reports, threads=threads, rounds=rounds, pictures=pictures,
            reproduce=_command(items, data, imgsz, threads, rounds), progress=progress,
        )  # fmt: skip


def _items(thing: Any, name: str | None, imgsz: int | None) -> list[Item]:
    if isinstance(thing, (str, Path)):
        return open_item(thing, imgsz, name)
    if isinstance(thing, Exported):
        named = {p: f"{name}:{p}" if name else path.name for p, path in thing.files.items()}
        return [i for p, path in thing.files.items() for i in open_item(path, imgsz, named[p])]
    source = opened(thing)
    size = len(checkpoint.to_bytes(source.model, source))
    item = of_model(source, imgsz, name or source.path.name, size)
    return [replace(item, path=IN_MEMORY)]  # the network may differ from the file that it came from


def _command(items, data, imgsz, threads, rounds) -> list[str]:
    """The command line that measures the same; empty if an item exists in memory only."""
    things = [item[1] if isinstance(item, tuple) else item for item in items]
    if not all(isinstance(thing, (str, Path)) for thing in things):
        return []
    words = ["edgeprune", "compare", *map(str, things)]
    for option, value, default in (
        ("--data", data, None), ("--imgsz", imgsz, None), ("--threads", threads, 1), ("--rounds", rounds, 40)
    ):  # fmt: skip
        if value != default:
            words += [option, str(value)]
    return [shlex.join(words)]
