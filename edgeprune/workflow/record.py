"""A build's record (`build.json`) in other forms: as a Comparison, as gates, as a command line."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from edgeprune_device import clock
from edgeprune_device.files import sha256
from edgeprune_device.size import Size

from edgeprune import demo
from edgeprune.comparison import compare, items
from edgeprune.comparison.comparison import Comparison
from edgeprune.comparison.facts import Gate, ValidationImages
from edgeprune.comparison.gallery import Gallery
from edgeprune.comparison.items import FOR_A_GPU
from edgeprune.comparison.row import Row
from edgeprune.exporting import parity
from edgeprune.model import checkpoint
from edgeprune.model.count import widths
from edgeprune.options import BuildOptions, declared
from edgeprune.pruning import prune

_TITLES = {"fp32": "FP32", "fp16": "FP16", "int8": "INT8", "int8-fp16": "INT8-FP16"}


def compared(
    record: Mapping[str, Any],
    out: Path,
    classes: tuple[str, ...],
    data: ValidationImages,
    gallery: Gallery | None,
) -> Comparison:
    """The build as a Comparison: every model beside the original, with all figures measured so far.

    Args:
        record: the content of build.json.
        out: the folder of the build.
        classes: class names.
        data: description of the validation images (`compare.about`).
        gallery: the images of the page's gallery (`gallery.choose`); None: none.
    """
    options = record["inputs"]["options"]
    made = {**record["models"], **record.get("failed", {}).get("models", {})}
    stages = {stage["name"]: stage for stage in record["stages"]}
    int8 = stages.get("quantize", {}).get("int8")
    return Comparison(
        title=f"{options['name']}: {options['budget']} for {options['target']}",
        kind="build",
        created=clock.wall(),
        reproduce=_reproduce(options, stages, out),
        data=data,
        machine=stages.get("quantize", {}).get("machine") or compare.machine(),
        items=(*(_row(name, entry, out) for name, entry in made.items()), *_engines(stages.get("reference"))),
        classes=classes,
        gates=tuple(gates(record)),
        gallery=gallery,
        more={
            "stages": [{"name": s["name"], "seconds": s["seconds"]} for s in record["stages"]],
            "rescued": None if int8 is None else [layer["layer"] for layer in int8["rescued"]],
            "bundle": stages.get("pack", {}).get("bundle"),
            "signed_by": stages.get("pack", {}).get("signed_by"),
        },
    )  # fmt: skip


def _row(name: str, entry: Mapping[str, Any], out: Path) -> Row:
    path = Path(entry["path"]) if name == "original" else out / entry.get("variant", entry["path"])
    there = path.is_file()  # a precision that failed its gate has figures, but no file
    keys = ("parameters", "macs", "channels", "map50", "map50_95", "map50_95_interval", "small_map50_95",
            "per_class", "latency_ms", "stages_ms", "fps_inference_only", "fps_end_to_end", "objects_found",
            "head")  # fmt: skip
    known: dict[str, Any] = {key: entry.get(key) for key in keys}
    half = name in ("fp16", "int8", "int8-fp16") and "as written" in (entry.get("measured_with") or "")
    return Row(
        name=name,
        path=str(path),
        sha256=sha256(path) if there else None,
        imgsz=entry.get("imgsz"),
        size_bytes=entry.get("stripped_size_bytes") or entry.get("size_bytes"),
        layers=_layers(path) if there else None,
        pictures=entry.get("pictures"),
        measured_with=entry.get("measured_with"),
        caveat=FOR_A_GPU if half else None,
        **known,
    )


def _layers(path: Path) -> dict[str, int]:
    if path.suffix == ".onnx":
        return items.layers_of(onnx.load(path))
    return widths(checkpoint.load(path).model)


def _engines(stage: Mapping[str, Any] | None) -> Iterator[Row]:
    """The figures that the reference device (--on) measured on its engines."""
    if stage is None:
        return
    for name, entry in stage["engines"].items():
        bench = entry.get("bench")
        if bench is None:
            continue
        yield Row(
            name=f"engine {name} *",
            path=entry["payload"],
            latency_ms={"p50": bench["infer_p50_ms"], "p90": None, "speedup": None, "rounds": None, "threads": None,
                        "runtime": entry["builder"], "samples": None},
            fps_end_to_end=bench["fps_end_to_end"],
            map50_95=bench["map50_95"],
            verdict=bench["verdict"],
            measured_with=f"measured by {stage['device']} during this build, on the bundle's images",
            recorded=True,
            machine=entry["for"],
        )  # fmt: skip


# -- gates -------------------------------------------------------------------------------------------------------------
def gates(record: Mapping[str, Any]) -> Iterator[Gate]:
    """Yield {name, limit, found, passed} for every gate of the build; passed is None if the gate was not judged."""
    stages = {stage["name"]: stage for stage in record["stages"]}
    if "prune" in stages:
        error = stages["prune"]["oracle_relative_error"]
        limit = f"{prune.ORACLE:g} relative, in float64"
        name = "The pruned network equals the original with masked channels"
        yield _gate(name, limit, f"{error:.1e}", error <= prune.ORACLE)
    if "export" in stages:
        p = stages["export"]["parity"]
        yield _gate(
            "The ONNX file equals PyTorch",
            f"{parity.MAX_BOX_PX:g} px, {parity.MAX_SCORE:g} in score",
            f"{p['max_box_px']:.2g} px, {p['max_score']:.1g} on {p['pictures']} images",
            p["max_box_px"] <= parity.MAX_BOX_PX and p["max_score"] <= parity.MAX_SCORE,
        )
    yield from _precisions(record, stages)
    built = stages.get("engine", {}).get("engines", {})
    if built:
        good = [name for name, entry in built.items() if entry["size_bytes"]]
        builder = next(iter(built.values()))["builder"]
        outcome = f"{len(good)} of {len(built)} files" + (f" by {builder}" if builder else "")
        # Without a builder on this host, the gate is not judged.
        passed = len(good) == len(built) if builder else None
        yield _gate("The ONNX parser and builder of TensorRT for RTX accept every file", "all", outcome, passed)
    shared, val = record["pictures"]["train_in_val"], record["pictures"]["val"]
    yield _gate("Validation images are not training images", "none", f"{shared} of {val} are", not shared)
    failed = record.get("failed")
    if failed and failed["stage"] != "quantize":
        yield _gate(f"Stage {failed['stage']}", "", failed["reason"], False)


def _precisions(record: Mapping[str, Any], stages: Mapping[str, Any]) -> Iterator[Gate]:
    failed = record.get("failed", {}) if record.get("failed", {}).get("stage") == "quantize" else {}
    models = {**record["models"], **failed.get("models", {})}
    before = models.get("fp32", {}).get("map50_95")
    limit = stages["quantize"]["max_drop"] if "quantize" in stages else record["inputs"]["options"]["max_drop"]
    judged = False
    for name in ("fp16", "int8", "int8-fp16"):
        after = models.get(name, {}).get("map50_95")
        if after is None or before is None:
            continue
        judged = True
        yield _gate(
            f"{_TITLES[name]} keeps mAP50-95", f"loses at most {limit:g}",
            f"{before:.4f} -> {after:.4f} ({after - before:+.4f})", before - after <= limit,
        )  # fmt: skip
    if failed and not judged:
        yield _gate("Precisions", f"lose at most {limit:g}", failed["reason"], False)


def _gate(name: str, limit: str, measured: str, passed: bool | None) -> Gate:
    return {"name": name, "limit": limit, "found": measured, "passed": passed}


# -- the command -------------------------------------------------------------------------------------------------------
def _reproduce(options: Mapping[str, Any], stages: Mapping[str, Any], out: Path) -> tuple[str, ...]:
    lines = [command(options)]
    if "pack" in stages:  # a failed build has no bundle
        words = ["edgeprune", "compare", options["weights"], str(out / stages["pack"]["bundle"])]
        words += ["--data", options["data"], "--imgsz", str(Size.of(options["imgsz"]))]
        for name in ("head", "val_images"):
            if options.get(name) is not None:
                words += [f"--{name.replace('_', '-')}", str(options[name])]
        lines.append(shlex.join(words))
    return tuple(lines)


def command(options: Mapping[str, Any]) -> str:
    """The command line of a build with these options; options with their default value are left out."""
    kind, value = str(options["budget"]).split()
    words = ["edgeprune", "build", f"--{'latency-ratio' if kind == 'latency' else kind.replace('_', '-')}", value]
    words += ["--target", options["target"]]
    # The demo on its own scenes needs neither option; on other data both are given.
    if options["weights"] != str(demo.WEIGHTS) or Path(options["data"]).parent.name != "demo":
        words += ["--weights", options["weights"], "--data", options["data"]]
    words += ["--imgsz", str(Size.of(options["imgsz"]))]
    shown = ("target", "weights", "data", "imgsz", "name")  # above; the name follows from them
    for name, option in declared(BuildOptions).items():
        default = list(option.default) if isinstance(option.default, tuple) else option.default
        given = options.get(name, default)
        if name in shown or given == default:
            continue
        words.append(option.flag)
        if given is not True:
            words.append(",".join(given) if isinstance(given, list) else str(given))
    return shlex.join(words)
