"""`ep.compare`: models side by side, measured alternately in one run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from edgeprune_device.errors import InputError
from edgeprune_device.option import named
from edgeprune_device.progress import Say
from edgeprune_device.size import largest_of
from typing_extensions import Unpack

from edgeprune.api.export import Exported
from edgeprune.api.source import Model, opened
from edgeprune.comparison import recorded
from edgeprune.comparison.compare import compare_items
from edgeprune.comparison.comparison import Comparison
from edgeprune.comparison.items import Item, of_model, open_item
from edgeprune.comparison.row import Row
from edgeprune.console.progress import Reporter
from edgeprune.data import dataset, samples
from edgeprune.model import checkpoint
from edgeprune.model.device import choose
from edgeprune.model.threads import ready
from edgeprune.options import CompareOptions, declared, takes
from edgeprune.tasks import DETECT

#: A file (.pt, .onnx, .epb, .json), the id of a collected report, "reports", a model, an export; or (name, item).
Compared: TypeAlias = "Model | Exported | tuple[str, Model | Exported]"

#: The path of a model that has no file.
IN_MEMORY = Path("(in memory)")


@takes(CompareOptions)
def compare(*items: Compared, **options: Unpack[CompareOptions]) -> Comparison:
    """Compare models by cost, latency, mAP and objects found; the first item is the reference for the others.

    Example: `ep.compare("best.pt", pruned, data="data.yaml").save_html("report.html")`

    Args:
        items: each a file (.pt, .onnx, .epb, or a bench report in .json), the id of a collected report, "reports" for
            all of them, a model, an `Exported`, or a pair `(name, item)` that gives one of these a name.
        options: see `CompareOptions`.

    Returns:
        The `Comparison`, which prints as a table and can be saved as an HTML report or as JSON.

    Raises:
        InputError: an argument is invalid, a file is missing or damaged, or the models have different classes.
        SignatureError: a bundle is not trusted, or a report was changed after it was signed.
    """
    data = options["data"]
    reporter = ready(Reporter(quiet=options["quiet"]))
    shapes = dataset.shapes(data, reporter) if data is not None and largest_of(options["imgsz"]) else None
    reports: list[Row] = []
    models: list[Item] = []
    for item in items:
        if isinstance(item, tuple) and len(item) != 2:
            raise InputError(f"named item: wrong length (found {len(item)} values, expected (name, item))")
        name, thing = item if isinstance(item, tuple) else (None, item)
        if isinstance(thing, (str, Path)) and recorded.is_recorded(str(thing)):
            rows = recorded.recorded(str(thing))
            reports += [replace(row, name=f"{name} *") for row in rows] if name else rows
        else:
            models += _items(thing, name, options, shapes, reporter.warn)
    judges = None
    if data is not None:
        if reports and not models:
            raise InputError(f"{named('data')}: recorded reports are not measured again; leave the option out")
        task = models[0].task if models else DETECT.name
        checked = dataset.load(data, task=task, strict=options["strict"], reporter=reporter)
        judges = samples.fewer(checked, options["val_images"])
    device = choose(options["device"])
    with reporter.stage("compare") as progress:
        return compare_items(
            models, judges, reports, threads=options["threads"], rounds=options["rounds"],
            device=device.torch,
            pictures=options["pictures"], reproduce=_command(items, options), progress=progress,
            warn=reporter.warn,
        )  # fmt: skip


def _items(
    thing: Any, name: str | None, options: CompareOptions, shapes: list[tuple[int, int]] | None, warn: Say
) -> list[Item]:
    imgsz, head = options["imgsz"], options["head"]
    if isinstance(thing, (str, Path)):
        return open_item(thing, imgsz, name, warn, head=head, shapes=shapes)
    if isinstance(thing, Exported):
        named = {p: f"{name}:{p}" if name else path.name for p, path in thing.files.items()}
        return [i for p, path in thing.files.items() for i in open_item(path, imgsz, named[p])]
    source = opened(thing, fused=True)
    size = len(checkpoint.to_bytes(source.model, source))
    item = of_model(source, imgsz, name or source.path.name, size, warn=warn, head=head, shapes=shapes)
    return [replace(item, path=IN_MEMORY)]  # the network may differ from the file that it came from


def _command(items: Sequence[Compared], options: CompareOptions) -> list[str]:
    """The command line that measures the same; empty if an item exists in memory only."""
    things = [item[1] if isinstance(item, tuple) else item for item in items]
    if not all(isinstance(thing, (str, Path)) for thing in things):
        return []
    words = ["edgeprune", "compare", *map(str, things)]
    values, known = dict(options), declared(CompareOptions)
    for name in ("data", "head", "imgsz", "val_images", "device", "threads", "rounds", "max_megapixels"):
        if values[name] != known[name].default:
            words += [known[name].flag, str(values[name])]
    return [shlex.join(words)]
