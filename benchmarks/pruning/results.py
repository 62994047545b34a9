"""From the cells to one JSON and one table."""

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
    """Everything in the work folder that is whole, whether made by this call or an earlier one."""
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
    """All of them in turns in one go; measured anew where the set has changed."""
    known, size = job.work / "latency.json", job.settings.imgsz
    of = {name: sha256(job.work / name / "cell.json") for name in names}
    if known.exists() and (found := json.loads(known.read_text()))["of"] == of:
        return found["latency"]
    models = {n: to_onnx(cells.model_of(job.work / n), (size, size)).SerializeToString() for n in names}
    latency = timing.time_models(models, size, threads=1) if models else {}
    write_atomic(known, json.dumps({"of": of, "latency": latency}))
    return latency


def _differences(job: cells.Job, rows: list[dict]) -> list[dict]:
    """Ours minus each other, in points of mAP, with the 95 % interval of a paired bootstrap over pictures; after
    fine-tuning of the means over the seeds that both have, before it of the states that fine-tuning starts from."""
    found = []
    for row in (r for r in rows if r["method"] == OURS):
        for other in rows:
            if other["method"] != OURS and other["macs_asked"] in (row["macs_asked"], 1.0):
                seeds = sorted({t["seed"] for t in row["tuned"]} & {t["seed"] for t in other["tuned"]})
                stages = {"untrained": [(row["starts_from"], other["starts_from"])]}
                if seeds:
                    stages["tuned"] = [(f"tuned-{s}",) * 2 for s in seeds]
                for stage, pairs in stages.items():
                    difference, low, high = _difference(job, row["name"], other["name"], pairs)
                    found.append({
                        "macs_asked": row["macs_asked"], "minus": other["method"], "stage": stage, "seeds": len(seeds),
                        "points": difference, "low": low, "high": high,
                    })  # fmt: skip
    return found


def _difference(job: cells.Job, ours: str, other: str, pairs: list[tuple[str, str]]) -> tuple[float, float, float]:
    def mean(name: str, states) -> tuple[float, np.ndarray]:
        folder = job.work / name
        scores = [json.loads((folder / f"{s}.json").read_text())["map50_95"] for s in states]
        return float(np.mean(scores)), np.mean([np.load(folder / f"{s}.npy") for s in states], axis=0)

    (a, drawn_a), (b, drawn_b) = mean(ours, [p[0] for p in pairs]), mean(other, [p[1] for p in pairs])
    low, high = np.percentile(drawn_a - drawn_b, [2.5, 97.5])
    return 100 * (a - b), 100 * float(low), 100 * float(high)


def _equal_map(rows: list[dict]) -> list[dict]:
    """For each budget of ours: its latency over that of the best peer at the same mAP after fine-tuning, the peer's
    between its measured budgets and the control by straight lines; null where none of its budgets is as accurate."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["tuned"]:
            point = (float(np.mean([t["map50_95"] for t in row["tuned"]])), row["latency_ms"]["p50"])
            curves.setdefault(row["method"], []).append(point)
    found, control = [], curves.pop("control", [])
    for accuracy, ms in curves.pop(OURS, []):
        reached = {m: _fastest([*points, *control], accuracy) for m, points in curves.items()}
        reached = {m: t for m, t in reached.items() if t is not None}
        peer = min(reached, key=reached.get, default=None)
        found.append({
            "map50_95": accuracy, "ours_ms": ms, "best_peer": peer, "peer_ms": reached.get(peer),
            "ratio": ms / reached[peer] if peer else None,
        })  # fmt: skip
    return found


def _fastest(points: list[tuple[float, float]], accuracy: float) -> float | None:
    """The least latency at which the polyline through `points` (mAP, ms), ordered by ms, has that accuracy."""
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
    found = Environment.read().to_json()
    return {**found, "packages": {**found["packages"], **packages}, "torch_threads": torch.get_num_threads()}


# -- the table -------------------------------------------------------------------------------------------------------
def table(result: dict) -> str:
    machine, job = result["machine"], result["job"]
    classes = ", ".join(f"{n} ({b})" for n, b in result["judged_classes"].items())
    packages = ", ".join(f"{k} {v}" for k, v in sorted(machine["packages"].items()) if v)
    seeds = _seeds(result)
    lines = [
        f"{result['weights']} on {result['data']}, {job['imgsz']} px. mAP50-95 in points on {result['pictures']} "
        f"validation pictures, mean over the classes that are judged by, with their boxes: {classes}.",
        f"Fine-tuning, the same for all: {job['epochs']} epochs, batch {job['batch']}, learning rate {job['lr']:g}, "
        f"{seeds} seed{'s' if seeds != 1 else ''} (mean, least … largest). Interval: 95 % of a paired bootstrap over "
        "pictures.",
        "Latency: ONNX Runtime, FP32, 1 thread, all models in turns.",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['os']}, Python {machine['python']}; {packages}. "
        f"Commit {result['commit'] or 'not known'}, {result['date']}.",
        "",
        "| MACs asked | method | MACs | parameters | cut | BN recalibrated | compensated | fine-tuned "
        "| ours minus this, points | ms p50 | opens in `YOLO()` |",
        "| --- " * 11 + "|",
    ]
    full = next((r for r in result["rows"] if r["method"] == "control"), None)
    lines += [_line(result, row, full) for row in result["rows"]]
    lines += ["", *_per_class(result)]
    errors = {r["opens"]["stock"] for r in result["rows"]} - {None}
    lines += ["", *(f"The error where it does not open: `{e}`" for e in sorted(errors))] if errors else []
    if any(r["opens"]["stock"] and not r["opens"]["with_class"] for r in result["rows"]):
        lines.append("These open where the two-branch class can be imported.")
    for row in result["equal_map"]:
        if row["best_peer"]:
            lines.append(
                f"At {100 * row['map50_95']:.1f} points ours takes {row['ours_ms']:.1f} ms, {row['best_peer']} "
                f"{row['peer_ms']:.1f} ms (interpolated): {row['ratio']:.2f}x."
            )
    return "\n".join(lines) + "\n"


def _seeds(result: dict) -> int:
    return max((len(r["tuned"]) for r in result["rows"]), default=0)


def _line(result: dict, row: dict, full: dict | None) -> str:
    def points(state: str) -> str:
        found = row["untrained"].get(state)
        return f"{100 * found['map50_95']:.1f}" if found else ""

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
    line = [f"{row['macs_asked']:.0%}", row["method"], share("macs"), share("parameters")]
    line += [points("cut") or points("original"), points("recalibrated"), points("compensated"), tuned]
    line += ["; ".join(differences), f"{ms['p50']:.1f}{speed}", "no" if row["opens"]["stock"] else "yes"]
    return f"| {' | '.join(line)} |"


def _per_class(result: dict) -> list[str]:
    """AP50-95 by class, after fine-tuning where there was one."""
    names = list(result["judged_classes"])
    lines = [
        "By class, fine-tuned (mean over seeds), or, where it was not, as fine-tuning would start:",
        "",
        f"| MACs asked | method | {' | '.join(names)} |",
        "| --- " * (2 + len(names)) + "|",
    ]
    for row in result["rows"]:
        measured = row["tuned"] or [row["untrained"][row["starts_from"]]]
        found = [{c["name"]: c["map50_95"] for c in m["all_classes"]["per_class"]} for m in measured]
        points = " | ".join(f"{100 * np.mean([f[n] for f in found]):.1f}" for n in names)
        lines.append(f"| {row['macs_asked']:.0%} | {row['method']} | {points} |")
    return lines
