"""Several models side by side in one table, measured in one run, in turns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from edgeprune_device import keys, runtimes, strict_json, vision
from edgeprune_device.bundle import Bundle
from edgeprune_device.errors import InputError
from edgeprune_device.report import BenchReport

from edgeprune import checkpoint, measure
from edgeprune import exporting
from edgeprune.count import Cost, count
from edgeprune.dataset import Dataset, check_names
from edgeprune.store import Store

SCHEMA_VERSION = 1
#: Confidence from which a detection counts as an object found, as `yolo predict` has it.
FOUND_CONF = 0.25


@dataclass(frozen=True)
class Item:
    """A thing to compare: its name, file, names of classes, input size, cost where countable, and its ONNX bytes.

    `described` says what the accuracy was measured with; session() opens it.
    """

    name: str
    path: Path
    size_bytes: int
    names: tuple[str, ...]
    imgsz: int
    cost: Cost | None
    model: bytes
    session: Callable


def open_item(text: str, imgsz: int | None) -> list[Item]:
    """The item(s) behind an argument: a .pt, an .onnx, or a bundle (one item per model in it).

    Raises:
        InputError, SignatureError: missing, damaged, unknown, or a bundle that is not trusted.
    """
    path = Path(text)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".pt":
        return [_checkpoint(path, imgsz)]
    if path.suffix == ".onnx":
        return [_onnx(path.name, path, path.read_bytes(), path.stat().st_size)]
    if path.suffix == ".epb":
        bundle = Bundle.open(path)
        entries = bundle.manifest.models.items()
        return [
            _onnx(f"{path.stem}:{p}", path, bundle.read(e["payload"]), bundle.payloads[e["payload"]].size_bytes)
            for p, e in entries
            if e["payload"]
        ]
    raise InputError(f"{path}: compare takes .pt, .onnx and .epb files, and .json reports")


def recorded(text: str) -> list[dict]:
    """The rows of a bench report's file, of the one in the store whose id begins so, or ("reports") of all there:
    figures of another run, perhaps of another machine, and marked so.

    Raises:
        InputError: not a bench report, or none of that id. SignatureError: it was changed.
    """
    if text == "reports":
        found = Store().entries()
        if not found:
            raise InputError(f"{Store().folder}: has no reports; edgeprune collect fetches some")
        return [_recorded(stored.read(), stored.path, stored.id[:12]) for stored in found]
    path = Path(text)
    if not path.is_file() and re.fullmatch("[0-9a-f]{6,64}", text):
        stored = Store().find(text)
        return [_recorded(stored.read(), stored.path, stored.id[:12])]
    try:
        report = BenchReport.from_json(strict_json.loads(path.read_bytes(), str(path)), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    if report.signature is not None:
        report.verify(str(path))
    return [_recorded(report, path, path.name)]


def is_recorded(text: str) -> bool:
    """Whether an item is a report (see `recorded`) and not a model."""
    found = text.endswith(".json") or text == "reports" or re.fullmatch("[0-9a-f]{6,64}", text)
    return bool(found) and (text.endswith(".json") or not Path(text).is_file())  # a folder may have such a name


def _recorded(report: BenchReport, path: Path, name: str) -> dict:
    accuracy, infer = report.accuracy, report.stages.get("infer", {})
    board = (report.board or {}).get("model") or report.environment.cpu or "an unknown machine"
    state = report.verdict["state"]
    return {
        "name": f"{name}:{report.precision} *",
        "path": str(path),
        "imgsz": None,
        "size_bytes": report.model["size_bytes"],
        "parameters": None,
        "macs": None,
        "channels": None,
        "latency_ms": {
            "p50": infer.get("p50_ms"), "p90": infer.get("p90_ms"), "speedup": None, "rounds": infer.get("samples"),
            "threads": report.runtime.get("threads"), "runtime": report.runtime["description"],
        },
        "fps_inference_only": report.fps_inference,
        "map50": accuracy.map50 if accuracy else None,
        "map50_95": accuracy.map50_95 if accuracy else None,
        "small_map50_95": accuracy.small_map50_95 if accuracy else None,
        "per_class": _per_class(accuracy),
        "objects_found": None,
        "pictures": accuracy.pictures if accuracy else None,
        "measured_with": f"recorded by bench on {board}, {report.created}, {state}, {_signer(report)}",
        "fps_end_to_end": report.fps_end_to_end,
        "mj_per_frame": report.power["mj_per_frame_gross"] if report.power else None,
        "verdict": state,
    }  # fmt: skip


def _signer(report: BenchReport) -> str:
    if report.signature is None:
        return "NOT SIGNED"
    fingerprint = keys.fingerprint(report.verify())
    name = keys.enrolled().get(fingerprint, (None,))[0]
    return f"signed by {name or f'{fingerprint}, which is not enrolled here'}"


def _per_class(accuracy) -> list[dict] | None:
    if accuracy is None:
        return None
    return [{"name": c.name, "boxes": c.boxes, "map50_95": c.map50_95} for c in accuracy.per_class]


def _checkpoint(path: Path, imgsz: int | None) -> Item:
    loaded = checkpoint.load(path)
    size = loaded.input_size(imgsz)
    exported = exporting.to_onnx(loaded.model, (size, size)).SerializeToString()
    return Item(
        path.name, path, path.stat().st_size, tuple(loaded.names), size, count(loaded.model, (size, size)), exported,
        lambda: measure.TorchSession(loaded.model),
    )  # fmt: skip


def _onnx(name: str, path: Path, data: bytes, size_bytes: int) -> Item:
    try:
        model = onnx.load_from_string(data)
        shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    except Exception as error:  # protobuf's DecodeError and its kin
        raise InputError(f"{path}: not an ONNX file ({' '.join(str(error).split())[:80]})") from error
    if len(shape) != 4 or shape[0] != 1 or shape[2] != shape[3] or not shape[2]:
        raise InputError(f"{path}: input of shape {shape}; compare takes static (1, 3, N, N) detectors")
    # As ONNX Runtime runs it on this machine: that is what the latency beside it belongs to.
    return Item(
        name, path, size_bytes, _names(model, path), shape[2], None, data, lambda: runtimes.open(data, "ort")
    )


def _names(model: onnx.ModelProto, path: Path) -> tuple[str, ...]:
    import ast

    meta = {p.key: p.value for p in model.metadata_props}
    try:
        names = ast.literal_eval(meta["names"])
        return tuple(str(names[i]) for i in range(len(names)))
    except (KeyError, ValueError, SyntaxError, TypeError):
        raise InputError(f"{path}: no class names in its metadata; export it with edgeprune or Ultralytics") from None


def compare(
    items: Sequence[Item],
    dataset: Dataset | None,
    reports: Sequence[dict] = (),
    *,
    threads: int = 1,
    rounds: int = 40,
    step: Callable[[float, str], None] = lambda fraction, what: None,
) -> dict:
    """Measure every item: cost, latency in turns, and on a data set mAP and the objects found. The rows of `reports`
    follow as they were recorded.

    Returns the Comparison as JSON; a figure that was not measured is null.
    """
    if not items and not reports:
        raise InputError("compare: give at least one .pt, .onnx or .epb file, or a report")
    for item in items:
        if item.names != items[0].names:
            raise InputError(f"{item.name} and {items[0].name} have different classes; they cannot be compared")
    if dataset is not None and items:
        check_names(dataset, list(items[0].names))
    keys = [f"{i}:{item.name}" for i, item in enumerate(items)]
    took: dict[str, dict] = {}
    for size in dict.fromkeys(item.imgsz for item in items):  # turns only make sense on one input
        group = {k: item.model for k, item in zip(keys, items) if item.imgsz == size}
        step(0.0, f"timing {len(group)} models at {size} px")
        timed = measure.latency(group, size, threads=threads, rounds=rounds)
        if size != items[0].imgsz:
            timed = {k: {**t, "speedup": None} for k, t in timed.items()}
        took.update(timed)
    rows = []
    for i, (key, item) in enumerate(zip(keys, items)):
        accuracy = found = None
        session = item.session()
        if dataset is not None:

            def shown(done, name=item.name, i=i):
                step((i + done / len(dataset.val)) / len(items), f"{name} {done}/{len(dataset.val)} pictures")

            accuracy, _ = measure.evaluate(session, dataset, dataset.val, item.imgsz, shown)
            found = objects_found(session, dataset.val, item)
        rows.append(_row(item, took[key], accuracy, found, session.description))
    return {
        "schema_version": SCHEMA_VERSION,
        "data": str(dataset.path) if dataset else None,
        "pictures": len(dataset.val) if dataset else None,
        "items": [*rows, *reports],
    }


def objects_found(session, pictures: Sequence[Path], item: Item) -> int:
    """Detections of confidence >= 0.25 after NMS, over all pictures."""
    total = 0
    for path in pictures:
        x, _ = vision.letterbox(vision.decode(path), item.imgsz)
        total += len(vision.detections(session.infer(x), classes=len(item.names), conf=FOUND_CONF, iou=0.7))
    return total


def _row(item: Item, took: dict, accuracy, found: int | None, described: str) -> dict:
    cost = item.cost.to_json() if item.cost else {"parameters": None, "macs": None, "channels": None}
    return {
        "name": item.name,
        "path": str(item.path),
        "imgsz": item.imgsz,
        "size_bytes": item.size_bytes,
        **cost,
        "latency_ms": took,
        "fps_inference_only": round(1000 / took["p50"], 1),
        "map50": accuracy.map50 if accuracy else None,
        "map50_95": accuracy.map50_95 if accuracy else None,
        "small_map50_95": accuracy.small_map50_95 if accuracy else None,
        "per_class": _per_class(accuracy),
        "objects_found": found,
        "pictures": accuracy.pictures if accuracy else None,
        "measured_with": described,
    }


def table(comparison: dict) -> str:
    """The comparison as aligned text."""
    head = ["model", "params M", "GMACs", "channels", "size MB", "ms p50", "x", "FPS", "mAP50-95", "mAP50", "found"]
    rows = [head, *(_cells(item) for item in comparison["items"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [aligned(row, widths) for row in rows]
    took = comparison["items"][0]["latency_ms"]
    lines.append("")
    lines.append(f"ms, x, FPS: inference alone (no pre- or post-processing), {took['runtime']}, in turns;")
    lines.append("x: speed relative to the first row.  -: not measured or not countable in this form.")
    for item in comparison["items"]:
        if item["name"].endswith("*"):
            runtime = item["latency_ms"]["runtime"]
            on = f"; mAP on {item['pictures']} pictures" if item["pictures"] else ""
            lines.append(f"*: {item['path']}: {item['measured_with']}, {runtime}{on}; not of this run.")
    if comparison["pictures"]:
        lines.append(f"mAP: {comparison['pictures']} pictures, conf 0.001, IoU 0.7; found: detections of conf >= 0.25.")
    return "\n".join(lines)


def aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    """The first cell to the left, the figures to the right."""
    return "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))


def _cells(item: dict) -> list[str]:
    def number(value, scale=1.0, digits=2):
        return "-" if value is None else f"{value / scale:.{digits}f}"

    took = item["latency_ms"]
    return [
        item["name"],
        number(item["parameters"], 1e6),
        number(item["macs"], 1e9),
        "-" if item["channels"] is None else str(item["channels"]),
        number(item["size_bytes"], 1e6),
        number(took["p50"]),
        number(took["speedup"]),
        number(item["fps_inference_only"], 1, 1),
        number(item["map50_95"], 1, 3),
        number(item["map50"], 1, 3),
        "-" if item["objects_found"] is None else str(item["objects_found"]),
    ]
