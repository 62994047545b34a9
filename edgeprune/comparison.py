"""Several models side by side, measured in one run, in turns: what `compare` and the end of `build` have to show.

Knows nothing of HTML (page/) and of terminals beyond aligned text.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
from edgeprune_device import clock, keys, strict_json
from edgeprune_device.accuracy import Accuracy
from edgeprune_device.bundle import Bundle
from edgeprune_device.environment import Environment
from edgeprune_device.errors import InputError
from edgeprune_device.files import sha256, write_atomic
from edgeprune_device.hint import no_such_file
from edgeprune_device.report import BenchReport

from edgeprune import checkpoint, exporting, gallery, measure, per_class, versions
from edgeprune import head as heads
from edgeprune.count import Cost, count, widths
from edgeprune.dataset import Dataset, check_names
from edgeprune.store import Store
from edgeprune.text import number, table

SCHEMA_VERSION = 2
#: Pictures that a gallery shows unless told otherwise.
GALLERY = 12
#: Says of a file with FP16 or signed INT8 inside what its time on a CPU is worth.
FOR_A_GPU = "a file for a GPU, run by ONNX Runtime on this CPU: its time here says nothing of the target's"


@dataclass(frozen=True)
class Item:
    """A model to compare. cost, layers: where they can be counted; model: its ONNX bytes; kind: what its output means;
    session: opens what the accuracy is measured with; head: which it answers with, where it has two."""

    name: str
    path: Path
    size_bytes: int
    sha256: str | None
    names: tuple[str, ...]
    imgsz: int
    cost: Cost | None
    layers: dict[str, int] | None
    model: bytes
    kind: str
    session: Callable[[], Any]
    caveat: str | None = None
    head: str | None = None


@dataclass(frozen=True)
class Row:
    """One model's figures; what was not measured is None.

    layers: output channels of each convolution; latency_ms, stages_ms, fps_*: see measure.Timing; pictures: that the
    accuracy was measured on; objects_found: detections of confidence >= 0.25; recorded: figures of another run, on
    `machine`; caveat: why a figure is not what it seems; head: which of a network's two its figures are of.
    """

    name: str
    path: str
    sha256: str | None = None
    imgsz: int | None = None
    size_bytes: int | None = None
    parameters: int | None = None
    macs: int | None = None
    channels: int | None = None
    layers: Mapping[str, int] | None = None
    latency_ms: Mapping[str, Any] | None = None
    stages_ms: Mapping[str, float] | None = None
    fps_inference_only: float | None = None
    fps_end_to_end: float | None = None
    map50: float | None = None
    map50_95: float | None = None
    small_map50_95: float | None = None
    per_class: Sequence[Mapping[str, Any]] | None = None
    pictures: int | None = None
    objects_found: int | None = None
    measured_with: str | None = None
    mj_per_frame: float | None = None
    verdict: str | None = None
    recorded: bool = False
    machine: str | None = None
    caveat: str | None = None
    head: str | None = None


class Drawing(str):
    """SVG text that a notebook shows as the picture it is."""

    def _repr_html_(self) -> str:
        return str(self)


@dataclass(frozen=True, repr=False)
class Comparison:
    """Models side by side; the first is what the others are compared with.

    kind: "compare" or "build"; reproduce: shell lines; data: {path, sha256, pictures, boxes, train_in_val} of the
    pictures that judged; machine, versions: where it was measured; gates: {name, limit, found, passed}; gallery: see
    gallery.choose; more: what a build has to say beside.
    """

    title: str
    kind: str
    created: str
    reproduce: tuple[str, ...]
    data: Mapping[str, Any] | None
    machine: Mapping[str, Any]
    items: tuple[Row, ...]
    classes: tuple[str, ...] = ()
    gates: tuple[Mapping[str, Any], ...] = ()
    gallery: Mapping[str, Any] | None = None
    more: Mapping[str, Any] | None = None
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any], what: str = "comparison") -> Comparison:
        """The inverse of to_json. InputError: it is none, or of another version."""
        known = {f.name for f in fields(cls)}
        if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION or set(data) != known:
            raise InputError(f"{what}: not a comparison of this version of edgeprune")
        try:
            tuples = {k: tuple(data[k]) for k in ("reproduce", "classes", "gates")}
            return cls(**{**data, **tuples, "items": tuple(Row(**item) for item in data["items"])})
        except TypeError as error:
            raise InputError(f"{what}: damaged ({error})") from error

    @cached_property
    def _html(self) -> str:
        from edgeprune import page

        return page.render(self.to_json())

    def html(self) -> str:
        """The whole page: self-contained, pictures included."""
        return self._html

    def save_html(self, path: str | Path) -> Path:
        """Write the page, whole or not at all."""
        return write_atomic(Path(path), self.html())

    def save_json(self, path: str | Path) -> Path:
        """Write what the page is made from."""
        # In the order that things have: that of the layers is the network's.
        return write_atomic(Path(path), json.dumps(self.to_json(), allow_nan=False) + "\n")

    def pareto(self) -> Drawing:
        """The plot of latency against mAP, as SVG in the colours of the text around it."""
        from edgeprune import page

        return Drawing(page.pareto(self.to_json()))

    def _repr_html_(self) -> str:
        from edgeprune import page

        return page.fragment(self.to_json())

    def __str__(self) -> str:
        return as_text(self)

    __repr__ = __str__


# -- what can be compared ----------------------------------------------------------------------------------------------
def open_item(text: str | Path, imgsz: int | None, name: str | None = None) -> list[Item]:
    """The item(s) behind an argument: a .pt, an .onnx, or a bundle (one item per model in it).

    Raises:
        InputError, SignatureError: missing, damaged, unknown, or a bundle that is not trusted.
    """
    path = Path(text)
    if not path.is_file():
        raise InputError(no_such_file(path))
    if path.suffix == ".pt":
        loaded = checkpoint.load(path)
        return [of_model(loaded, imgsz, name or path.name, path.stat().st_size, sha256(path))]
    if path.suffix == ".onnx":
        data = path.read_bytes()
        return [_onnx(name or path.name, path, data, len(data))]
    if path.suffix == ".epb":
        bundle = Bundle.open(path)
        present = {p: e["payload"] for p, e in bundle.manifest.models.items() if e["payload"]}
        return [
            _onnx(f"{name or path.stem}:{p}", path, bundle.read(file), bundle.payloads[file].size_bytes,
                  bundle.manifest.output)
            for p, file in present.items()
        ]  # fmt: skip
    raise InputError(f"{path}: compare takes .pt, .onnx and .epb files, and .json reports")


def of_model(
    source: checkpoint.Checkpoint, imgsz: int | None, name: str, size_bytes: int, digest: str | None = None
) -> Item:
    """A network as an item; what is timed is its ONNX export."""
    size = source.input_size(imgsz)
    exported = exporting.to_onnx(source.model, (size, size))
    return Item(
        name, source.path, size_bytes, digest, tuple(source.names), size, count(source.model, (size, size)),
        widths(source.model), exported.SerializeToString(), heads.output_of_file(exported),
        lambda: measure.TorchSession(source.model, size), head=heads.of_network(source.model),
    )  # fmt: skip


def _onnx(name: str, path: Path, data: bytes, size_bytes: int, stated: str | None = None) -> Item:
    """stated: what a manifest says of its output."""
    try:
        model = onnx.load_from_string(data)
        shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    except Exception as error:  # protobuf's DecodeError and its kin
        raise InputError(f"{path}: not an ONNX file ({' '.join(str(error).split())[:80]})") from error
    if len(shape) != 4 or shape[0] != 1 or shape[2] != shape[3] or not shape[2]:
        raise InputError(f"{path}: input of shape {shape}; compare takes static (1, 3, N, N) detectors")
    names, kind = _names(model, path), heads.output_of_file(model, stated, what=str(path))
    # As ONNX Runtime runs it on this machine: that is what the latency beside it belongs to.
    return Item(
        name, path, size_bytes, _sha256(data), names, shape[2], None, layers_of(model), data, kind,
        lambda: measure.OnnxSession(data, kind), FOR_A_GPU if for_a_gpu(model) else None, heads.of_file(model),
    )  # fmt: skip


def for_a_gpu(model: onnx.ModelProto) -> bool:
    """Whether it has FP16 values, or signed INT8 activations, which no CPU is fast at."""
    half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
    types = {t.name: t.data_type for t in model.graph.initializer}
    quantized = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    signed = any(types.get(n.input[2]) == onnx.TensorProto.INT8 for n in quantized if len(n.input) > 2)
    return half or signed


def layers_of(model: onnx.ModelProto) -> dict[str, int]:
    """{layer: output channels} of each convolution, by the names that the weights had in the network."""
    shapes = {t.name: t.dims for t in model.graph.initializer}
    makers = {n.output[0]: n for n in model.graph.node}
    found = {}
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        name = node.input[1]
        while name not in shapes and name in makers:  # behind Q/DQ or a cast
            name = makers[name].input[0]
        layer = re.match(r"(.*?)\.weight", name)
        if layer and name in shapes:
            found[layer[1]] = int(shapes[name][0])
    return found


def _names(model: onnx.ModelProto, path: Path) -> tuple[str, ...]:
    meta = {p.key: p.value for p in model.metadata_props}
    try:
        names = ast.literal_eval(meta["names"])
        return tuple(str(names[i]) for i in range(len(names)))
    except (KeyError, ValueError, SyntaxError, TypeError):
        raise InputError(f"{path}: no class names in its metadata; export it with edgeprune or Ultralytics") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- what was recorded elsewhere ---------------------------------------------------------------------------------------
def is_recorded(text: str) -> bool:
    """Whether an item is a report (see `recorded`) and not a model."""
    found = text.endswith(".json") or text == "reports" or re.fullmatch("[0-9a-f]{6,64}", text)
    return bool(found) and (text.endswith(".json") or not Path(text).is_file())  # a folder may have such a name


def recorded(text: str) -> list[Row]:
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


def _recorded(report: BenchReport, path: Path, name: str) -> Row:
    accuracy, infer = report.accuracy, report.stages.get("infer", {})
    board = (report.board or {}).get("model") or report.environment.cpu or "an unknown machine"
    state = report.verdict["state"]
    stages = {k: report.stages[k]["p50_ms"] for k in ("decode", "pre", "infer", "post") if k in report.stages}
    samples = infer.get("samples_ns") or []
    return Row(
        name=f"{name}:{report.precision} *",
        path=str(path),
        sha256=report.model["sha256"],
        size_bytes=report.model["size_bytes"],
        latency_ms={
            "p50": infer.get("p50_ms"), "p90": infer.get("p90_ms"), "speedup": None, "rounds": infer.get("samples"),
            "threads": report.runtime.get("threads"), "runtime": report.runtime["description"],
            "samples": [round(ns / 1e6, 3) for ns in samples] or None,
        },
        stages_ms=stages if len(stages) == 4 else None,
        fps_inference_only=report.fps_inference,
        fps_end_to_end=report.fps_end_to_end,
        **accuracy_of(accuracy),
        measured_with=f"recorded by bench on {board}, {report.created}, {state}, {_signer(report)}",
        mj_per_frame=report.power["mj_per_frame_gross"] if report.power else None,
        verdict=state,
        recorded=True,
        machine=board,
    )  # fmt: skip


def _signer(report: BenchReport) -> str:
    if report.signature is None:
        return "NOT SIGNED"
    fingerprint = keys.fingerprint(report.verify())
    name = keys.enrolled().get(fingerprint, (None,))[0]
    return f"signed by {name or f'{fingerprint}, which is not enrolled here'}"


def accuracy_of(accuracy: Accuracy | None) -> dict[str, Any]:
    """The fields of a Row that an Accuracy fills."""
    if accuracy is None:
        return {}
    return {
        "map50": accuracy.map50,
        "map50_95": accuracy.map50_95,
        "small_map50_95": accuracy.small_map50_95,
        "per_class": [
            {"name": c.name, "boxes": c.boxes, "map50": c.map50, "map50_95": c.map50_95} for c in accuracy.per_class
        ],
        "pictures": accuracy.pictures,
    }


# -- comparing ---------------------------------------------------------------------------------------------------------
def compare(
    items: Sequence[Item],
    dataset: Dataset | None,
    reports: Sequence[Row] = (),
    *,
    threads: int = 1,
    rounds: int = 40,
    pictures: int = GALLERY,
    reproduce: Sequence[str] = (),
    step: Callable[[float, str], None] = lambda fraction, what: None,
) -> Comparison:
    """Measure every item: cost, latency in turns, and on a data set mAP, the objects found, and the stages around the
    network. The rows of `reports` follow as they were recorded. pictures: how many the gallery shows.

    Raises:
        InputError: nothing to compare, or models of different classes.
    """
    if not items and not reports:
        raise InputError("compare: give at least one .pt, .onnx or .epb file, or a report")
    for item in items:
        if item.names != items[0].names:
            raise InputError(f"{item.name} and {items[0].name} have different classes; compare models of one data set")
    if dataset is not None and items:
        check_names(dataset, list(items[0].names))
    names = _unique([item.name for item in items] + [row.name for row in reports])
    took = _timed(items, names, dataset, threads, rounds, step)
    rows, shown = [], {}
    for i, (name, item) in enumerate(zip(names, items)):
        accuracy, session = None, item.session()
        if dataset is not None:

            def told(done, name=name, i=i):
                total = len(dataset.val)
                step(0.2 + 0.8 * (i + done / total) / len(items), f"{name} {done}/{total} pictures")

            shown[name] = []
            accuracy, _ = measure.evaluate(session, dataset, dataset.val, item.imgsz, told, shown[name])
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
    """Two files of one name are told apart by a number."""
    taken: dict[str, int] = {}
    found = []
    for name in names:
        taken[name] = taken.get(name, 0) + 1
        found.append(name if taken[name] == 1 else f"{name} ({taken[name]})")
    return found


def _timed(items, names, dataset, threads: int, rounds: int, step) -> dict[str, dict]:
    """name -> measure.Timing as JSON."""
    took: dict[str, dict] = {}
    for size in dict.fromkeys(item.imgsz for item in items):  # turns only make sense on one input
        group = {name: item.model for name, item in zip(names, items) if item.imgsz == size}
        kinds = {name: item.kind for name, item in zip(names, items)}
        step(0.0, f"timing {len(group)} models at {size} px")
        val, classes = (dataset.val, len(dataset.names)) if dataset else ((), 0)
        timed = measure.latency(
            group, size, val, classes=classes, kinds=kinds, threads=threads, rounds=rounds
        )
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
    """What is said of the pictures that judged. train_in_val: how many of them are training pictures, too."""
    return {
        "path": str(dataset.path),
        "sha256": dataset.sha256,
        "pictures": len(dataset.val),
        "boxes": int(dataset.boxes(dataset.val).sum()),
        "train_in_val": train_in_val,
    }


def machine() -> dict[str, Any]:
    """This machine, and the versions that matter."""
    found = Environment.read().to_json()
    return {**found, "packages": {**found["packages"], **versions.of_packages()}}


def shown_best(dataset: Dataset, shown: Mapping[str, Sequence], count: int) -> dict[str, Any]:
    """gallery.choose over the validation pictures."""
    shapes = [measure.shape(picture) for picture in dataset.val]
    truths = [dataset.truth(picture, shape) for picture, shape in zip(dataset.val, shapes)]
    return gallery.choose(dataset.val, truths, shapes, shown, count, conf=measure.SHOWN_CONF)


# -- as text -----------------------------------------------------------------------------------------------------------
def as_text(comparison: Comparison) -> str:
    """The comparison as aligned text."""
    head = ["model", "params M", "GMACs", "channels", "size MB", "ms p50", "x", "FPS", "mAP50-95", "mAP50", "found"]
    lines = table([head, *(_cells(row) for row in comparison.items)])
    measured = [row for row in comparison.items if not row.recorded]
    lines.append("")
    timed = next((row for row in measured if row.latency_ms), None)  # of a build that failed early, none
    if timed:
        runtime = timed.latency_ms["runtime"]
        lines.append(f"ms, x, FPS: inference alone (no pre- or post-processing), {runtime}, in turns;")
        lines.append("x: speed relative to the first row.  -: not measured or not countable in this form.")
    for row in comparison.items:
        if row.recorded:
            on = f"; mAP on {row.pictures} pictures" if row.pictures else ""
            lines.append(f"*: {row.path}: {row.measured_with}, {row.latency_ms['runtime']}{on}; not of this run.")
    for caveat in dict.fromkeys(row.caveat for row in measured if row.caveat):
        names = ", ".join(row.name for row in measured if row.caveat == caveat)
        lines.append(f"of {names}: {caveat}.")
    if comparison.data and measured:
        pictures = comparison.data["pictures"]
        lines.append(f"mAP: {pictures} pictures, conf 0.001, IoU 0.7; found: detections of conf >= 0.25.")
        if two := [row.name for row in measured if row.head and row.map50_95 is not None]:
            lines.append(f"mAP of {', '.join(two)}: that of {heads.NOTE}.")
        for row in measured[1:]:
            if lost := per_class.worst(measured[0].per_class, row.per_class):
                lines.append(f"{row.name}: worst class {lost[0]}, mAP50-95 {lost[1]:.3f} -> {lost[2]:.3f}.")
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    took = row.latency_ms or {}
    return [
        row.name,
        number(row.parameters, 2, 1e6),
        number(row.macs, 2, 1e9),
        number(row.channels, 0),
        number(row.size_bytes, 2, 1e6),
        number(took.get("p50")),
        number(took.get("speedup")),
        number(row.fps_inference_only, 1),
        number(row.map50_95, 3),
        number(row.map50, 3),
        number(row.objects_found, 0),
    ]
