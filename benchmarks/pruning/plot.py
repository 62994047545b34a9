"""mAP against MACs and against latency, before and after fine-tuning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from edgeprune_device.files import replacing

from benchmarks.pruning.results import OURS

#: Okabe and Ito's colours, which are safe for colour-blind readers; ours black and thick.
_STYLE = {
    "ours": ("#000000", "o"),
    "tp-bn": ("#0072B2", "s"),
    "tp-magnitude": ("#56B4E9", "^"),
    "tp-taylor": ("#009E73", "v"),
    "uniform": ("#D55E00", "D"),
    "random": ("#999999", "X"),
}

_TITLES = {
    "untrained": "before fine-tuning: BN recalibrated, ours compensated; hollow and dotted: surgery alone",
    "tuned": "fine-tuned, {epochs} epochs; mean of {seeds} seeds, bars from the least to the largest",
}


def draw(result: dict, path: Path) -> None:
    """Two rows (before, and after fine-tuning if there was any), two columns (MACs, latency)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = result["rows"]
    stages = ["untrained", "tuned"] if any(r["tuned"] for r in rows) else ["untrained"]
    figure, axes = plt.subplots(
        len(stages), 2, figsize=(11, 0.9 + 3.9 * len(stages)), squeeze=False, sharey="row", sharex="col",
        layout="constrained",
    )  # fmt: skip
    control = next((r for r in rows if r["method"] == "control"), None)
    full = control["macs"] if control else None
    left = {"loc": "left", "fontsize": 10}
    for line, stage in zip(axes, stages):
        for axis, of in zip(line, (lambda r: 100 * r["macs"] / full if full else r["macs"] / 1e9, _ms)):
            _panel(axis, rows, stage, of)
        line[0].set_ylabel("mAP50-95, points")
        line[0].set_title(_TITLES[stage].format(seeds=max(len(r["tuned"]) for r in rows), **result["job"]), **left)
        line[0].set_ylim(bottom=min(0, line[0].get_ylim()[0]) if stage == "untrained" else None)
    axes[-1][0].set_xlabel("MACs, % of the original" if full else "MACs, G")
    axes[-1][1].set_xlabel("inference, ms (ONNX Runtime, 1 thread)")
    handles = {label: handle for row in axes for handle, label in zip(*row[0].get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    job = result["job"]
    figure.suptitle(
        f"{result['weights']} on {result['data']}, {job['imgsz']} px, {result['machine']['cpu']}", fontsize=10
    )
    with replacing(path) as beside:
        figure.savefig(beside, dpi=130, format="png")
    plt.close(figure)


def _ms(row: dict) -> float:
    return row["latency_ms"]["p50"]


def _panel(axis, rows: list[dict], stage: str, of) -> None:
    for method, (colour, marker) in _STYLE.items():
        method_rows = sorted((r for r in rows if r["method"] == method), key=of)
        if not method_rows:
            continue
        bold = {"linewidth": 2.2, "zorder": 4} if method == OURS else {"linewidth": 1.2, "zorder": 3}
        same = {"color": colour, "marker": marker, "markersize": 6, **bold}
        if stage == "tuned":
            _with_errors(axis, [r for r in method_rows if r["tuned"]], of, method, same)
            continue
        hollow = {**same, "linestyle": ":", "linewidth": 1, "markerfacecolor": "white"}
        _line(axis, method_rows, of, lambda r: r["starts_from"], method, same)
        _line(axis, method_rows, of, lambda r: "cut", None, hollow)
    for row in (r for r in rows if r["method"] == "control"):
        scores = (
            [t["map50_95"] for t in row["tuned"]] if stage == "tuned" else [row["untrained"]["original"]["map50_95"]]
        )
        if scores:
            label = "control: the original, fine-tuned alike" if stage == "tuned" else "original"
            style = {"color": "#CC79A7", "linestyle": "--" if stage == "tuned" else "-.", "linewidth": 1.2}
            axis.axhline(100 * np.mean(scores), label=label, zorder=1, **style)
            axis.plot([of(row)], [100 * np.mean(scores)], marker="*", markersize=11, color="#CC79A7", zorder=2)
            if stage == "tuned":
                axis.axhspan(100 * min(scores), 100 * max(scores), color="#CC79A7", alpha=0.12, zorder=0, linewidth=0)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _line(axis, rows, of, state, label, style) -> None:
    axis.plot([of(r) for r in rows], [100 * r["untrained"][state(r)]["map50_95"] for r in rows], label=label, **style)


def _with_errors(axis, rows, of, label, style) -> None:
    if not rows:
        return
    scores = [[100 * t["map50_95"] for t in r["tuned"]] for r in rows]
    mean = np.array([np.mean(s) for s in scores])
    errors = [mean - [min(s) for s in scores], [max(s) for s in scores] - mean]
    axis.errorbar([of(r) for r in rows], mean, yerr=errors, capsize=3, label=label, **style)
