"""Collects the cells in one JSON file and one table."""

from __future__ import annotations

import itertools
import json
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from edgeprune_device.files import sha256, write_atomic
from edgeprune_device.machine.environment import Environment

from benchmarks.pruning import cells
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.measuring import timing

OURS = "ours"


def collect(job: cells.Job) -> dict:
    """All complete cells in the work folder, from this and earlier calls."""
    rows = [_row(folder) for folder in sorted(job.work.iterdir()) if (folder / "cell.json").exists()]
    order = list(cells.METHODS)
    rows.sort(key=lambda r: (r["method"] != "control", -r["macs_asked"], order.index(r["method"])))
    for name, took in _latency(job, [r["name"] for r in rows]).items():
        next(r for r in rows if r["name"] == name)["latency_ms"] = took
    data = job.data.path.resolve()
    return {
        "weights": job.source.path.name, "data": f"{data.parent.name}/{data.name}", "pictures": len(job.data.val),
        "judged_classes": {job.data.names[i]: int(job.data.boxes(job.data.val)[i]) for i in job.judged},
        "job": job.identity(), "machine": _machine(), "commit": cells.commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rows": rows, "differences": _differences(job, rows), "equal_map": _equal_map(rows),
    }  # fmt: skip


def _row(folder: Path) -> dict:
    cell = json.loads((folder / "cell.json").read_text())
    tuned = [json.loads(p.read_text()) for p in sorted(folder.glob("tuned-*.json"))]
    untrained = {state: json.loads((folder / f"{state}.json").read_text()) for state in cell["states"]}
    return {"name": folder.name, **cell, "untrained": untrained, "tuned": tuned}


def _latency(job: cells.Job, names: list[str]) -> dict[str, dict]:
    """The latencies of all models, measured alternately in one run; measured again if the set has changed."""
    known, size = job.work / "latency.json", job.settings.imgsz
    of = {name: sha256(job.work / name / "cell.json") for name in names}
    if known.exists() and (stored := json.loads(known.read_text()))["of"] == of:
        return stored["latency"]
    models = {n: to_onnx(cells.model_of(job.work / n), size).SerializeToString() for n in names}
    timed = timing.time_models(models, threads=1) if models else {}
    latency = {name: times.to_json()["latency_ms"] for name, times in timed.items()}
    write_atomic(known, json.dumps({"of": of, "latency": latency}))
    return latency


def _differences(job: cells.Job, rows: list[dict]) -> list[dict]:
    """Our mAP minus that of each other method, in points, with the 95 % interval of a paired bootstrap over images.

    After fine-tuning the mAPs are means over the common seeds; before it they are those of the states to be fine-tuned.
    """
    differences = []
    for row in (r for r in rows if r["method"] == OURS):
        for other in rows:
            if other["method"] != OURS and other["macs_asked"] in (row["macs_asked"], 1.0):
                seeds = sorted({t["seed"] for t in row["tuned"]} & {t["seed"] for t in other["tuned"]})
                stages = {"untrained": [(row["starts_from"], other["starts_from"])]}
                if seeds:
                    stages["tuned"] = [(f"tuned-{s}",) * 2 for s in seeds]
                for stage, pairs in stages.items():
                    difference, low, high = _difference(job, row["name"], other["name"], pairs)
                    differences.append({
                        "macs_asked": row["macs_asked"], "minus": other["method"], "stage": stage, "seeds": len(seeds),
                        "points": difference, "low": low, "high": high,
                    })  # fmt: skip
    return differences


def _difference(job: cells.Job, ours: str, other: str, pairs: list[tuple[str, str]]) -> tuple[float, float, float]:
    def mean(name: str, states) -> tuple[float, np.ndarray]:
        folder = job.work / name
        scores = [json.loads((folder / f"{s}.json").read_text())["map50_95"] for s in states]
        return float(np.mean(scores)), np.mean([np.load(folder / f"{s}.npy") for s in states], axis=0)

    (a, drawn_a), (b, drawn_b) = mean(ours, [p[0] for p in pairs]), mean(other, [p[1] for p in pairs])
    low, high = np.percentile(drawn_a - drawn_b, [2.5, 97.5])
    return 100 * (a - b), 100 * float(low), 100 * float(high)


def _equal_map(rows: list[dict]) -> list[dict]:
    """For each of our budgets: our latency divided by the best other method's at the same mAP after fine-tuning,
    linearly interpolated between its measured budgets and the control; null if none of its budgets is as accurate.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["tuned"]:
            point = (float(np.mean([t["map50_95"] for t in row["tuned"]])), row["latency_ms"]["p50"])
            curves.setdefault(row["method"], []).append(point)
    comparisons, control = [], curves.pop("control", [])
    for accuracy, ms in curves.pop(OURS, []):
        reached = {m: _fastest([*points, *control], accuracy) for m, points in curves.items()}
        reached = {m: t for m, t in reached.items() if t is not None}
        peer = min(reached, key=reached.get, default=None)
        comparisons.append({
            "map50_95": accuracy, "ours_ms": ms, "best_peer": peer, "peer_ms": reached.get(peer),
            "ratio": ms / reached[peer] if peer else None,
        })  # fmt: skip
    return comparisons


def _fastest(points: list[tuple[float, float]], accuracy: float) -> float | None:
    """The lowest latency at which the polyline through `points` (mAP, ms), ordered by ms, reaches that accuracy."""
    points = sorted(points, key=lambda p: p[1])
    if points and points[0][0] >= accuracy:
        return points[0][1]
    for (low, fast), (high, slow) in itertools.pairwise(points):
        if high >= accuracy:
            return fast + (slow - fast) * (accuracy - low) / (high - low)
    return None


def _machine() -> dict:
    packages = {p: metadata.version(p) for p in ("torch", "ultralytics", "onnx", "onnxruntime", "edgeprune")}
    try:
        packages["torch-pruning"] = metadata.version("torch-pruning")
    except metadata.PackageNotFoundError:
        packages["torch-pruning"] = None
    machine = Environment.read().to_json()
    return {**machine, "packages": {**machine["packages"], **packages}, "torch_threads": torch.get_num_threads()}


# -- the table -------------------------------------------------------------------------------------------------------
def table(result: dict) -> str:
    machine, job = result["machine"], result["job"]
    classes = ", ".join(f"{n} ({b})" for n, b in result["judged_classes"].items())
    packages = ", ".join(f"{k} {v}" for k, v in sorted(machine["packages"].items()) if v)
    seeds = _seeds(result)
    lines = [
        f"# Pruners compared on {result['weights']}",
        "",
        f"{result['data']}, {job['imgsz']} px. mAP50-95 is in points on {result['pictures']} validation images, as the "
        f"mean over these classes (number of boxes in brackets): {classes}.",
        "",
        f"All methods are fine-tuned in the same way: {job['epochs']} epochs, batch {job['batch']}, learning rate "
        f"{job['lr']:g}, {seeds} seed{'s' if seeds != 1 else ''}. The figures after fine-tuning are the mean over the "
        "seeds, with the lowest and the highest value in brackets. Differences have the 95 % interval of a paired "
        "bootstrap over images in brackets. Latency: ONNX Runtime, FP32, one thread, measured alternately.",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['os']}, Python {machine['python']}; {packages}. "
        f"Commit {result['commit'] or 'not known'}, {result['date']}.",
        "",
        "| MACs budget | method | MACs | parameters | mAP after surgery | after BN recalibration "
        "| after compensation | after fine-tuning | edgeprune minus this method | p50, ms | opens in `YOLO()` |",
        "| --- " * 11 + "|",
    ]
    full = next((r for r in result["rows"] if r["method"] == "control"), None)
    lines += [_line(result, row, full) for row in result["rows"]]
    lines += ["", *_per_class(result)]
    errors = {r["opens"]["stock"] for r in result["rows"]} - {None}
    lines += ["", *(f"Error of the checkpoints that do not open: `{e}`" for e in sorted(errors))] if errors else []
    if any(r["opens"]["stock"] and not r["opens"]["with_class"] for r in result["rows"]):
        lines += ["", "These checkpoints open if the two-branch class can be imported."]
    lines.append("")
    for row in result["equal_map"]:
        if row["best_peer"]:
            lines.append(
                f"- At {100 * row['map50_95']:.1f} points, edgeprune takes {row['ours_ms']:.1f} ms and "
                f"{row['best_peer']} {row['peer_ms']:.1f} ms (interpolated): {row['ratio']:.2f} times the latency."
            )
    return "\n".join(lines) + "\n"


def _named(row: dict) -> str:
    return "edgeprune" if row["method"] == "ours" else row["method"]


def _seeds(result: dict) -> int:
    return max((len(r["tuned"]) for r in result["rows"]), default=0)


def _line(result: dict, row: dict, full: dict | None) -> str:
    def points(state: str) -> str:
        accuracy = row["untrained"].get(state)
        return f"{100 * accuracy['map50_95']:.1f}" if accuracy else ""

    def share(key: str) -> str:
        return f"{row[key] / 1e6:,.2f} M" + (f" ({row[key] / full[key]:.1%})" if full else "")

    after = [100 * t["map50_95"] for t in row["tuned"]]
    tuned = f"{np.mean(after):.1f}" if after else ""
    if len(after) > 1:
        tuned += f" ({min(after):.1f} … {max(after):.1f})"
    if 0 < len(after) < _seeds(result):
        tuned += f", {len(after)} of the seeds"
    differences = [
        (f"at {d['macs_asked']:.0%}: " if row is full else "")
        + f"{d['points']:+.1f} ({d['low']:+.1f} … {d['high']:+.1f})"
        + ("" if d["seeds"] else " before training")
        for d in result["differences"]
        if d["minus"] == row["method"] and (row is full or d["macs_asked"] == row["macs_asked"])
        and d["stage"] == ("tuned" if d["seeds"] else "untrained")
    ]  # fmt: skip
    ms = row["latency_ms"]
    speed = f" ({ms['speedup']:.2f}x)" if full and row is not full else ""
    line = [f"{row['macs_asked']:.0%}", _named(row), share("macs"), share("parameters")]
    line += [points("cut") or points("original"), points("recalibrated"), points("compensated"), tuned]
    line += ["; ".join(differences), f"{ms['p50']:.1f}{speed}", "no" if row["opens"]["stock"] else "yes"]
    return f"| {' | '.join(line)} |"


def _per_class(result: dict) -> list[str]:
    """AP50-95 by class, after fine-tuning if there was any."""
    names = list(result["judged_classes"])
    lines = [
        "mAP50-95 by class after fine-tuning (mean over the seeds). A method that was not fine-tuned has its figures "
        "before fine-tuning.",
        "",
        f"| MACs budget | method | {' | '.join(names)} |",
        "| --- " * (2 + len(names)) + "|",
    ]
    for row in result["rows"]:
        measured = row["tuned"] or [row["untrained"][row["starts_from"]]]
        scores = [{c["name"]: c["map50_95"] for c in m["all_classes"]["per_class"]} for m in measured]
        points = " | ".join(f"{100 * np.mean([f[n] for f in scores]):.1f}" for n in names)
        lines.append(f"| {row['macs_asked']:.0%} | {_named(row)} | {points} |")
    return lines
