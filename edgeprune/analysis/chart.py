"""The plot of an analysis: accuracy against budget, and below it the sensitivity of every group."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.analysis.findings import COLLAPSE, KEEP, SHARE, Findings, GroupSensitivity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _GREEN, _RED, _GREY = "#1f5fa8", "#2a8a3e", "#c0392b", "#777777"
_COUNTED = {"macs": "MACs left", "params": "parameters left", "ratio": "prunable channels removed"}


def figure(findings: Findings) -> Figure:
    """The plot as a matplotlib Figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = max(9.0, 1.5 + 0.2 * len(findings.groups))
    drawn = Figure(figsize=(width, 9.5), dpi=120, layout="constrained")
    FigureCanvasAgg(drawn)
    above, below = drawn.subplots(2, 1, height_ratios=(1, 1.1))
    drawn.suptitle(f"{findings.name} at {findings.imgsz} px, pruned and compensated, before any training", fontsize=12)
    _whole(above, findings)
    _groups(below, findings.groups)
    return drawn


def png(findings: Findings) -> bytes:
    """The plot as the bytes of a PNG file."""
    stream = io.BytesIO()
    figure(findings).savefig(stream, format="png")
    return stream.getvalue()


def _whole(axes: Axes, findings: Findings) -> None:
    base = findings.accuracy.map50_95
    axes.set_xlabel(f"{_COUNTED[findings.kind]}, % (more is pruned to the right)")
    axes.set_ylabel("mAP50-95")
    axes.grid(alpha=0.3)
    if base is None:
        axes.text(0.5, 0.5, "these images have no labelled boxes", transform=axes.transAxes, ha="center")
        return
    uncut = 0.0 if findings.kind == "ratio" else 1.0
    xs = 100 * np.array([uncut, *(p.value for p in findings.rungs)])
    ys = np.array([base, *(p.map50_95 for p in findings.rungs)], dtype=float)
    axes.plot(xs, ys, "o-", color=_BLUE, zorder=3, label="measured")
    if base > 0:
        low, high = np.array([p.interval for p in findings.rungs]).T * base
        axes.fill_between(xs[1:], low, high, color=_BLUE, alpha=0.15, lw=0, label="95 % interval over images")
        for share, colour in ((KEEP, _GREEN), (COLLAPSE, _RED)):
            axes.axhline(share * base, color=colour, ls=":", lw=1, label=f"{share:.0%} of the unpruned mAP")
    for point, colour, text in (
        (findings.advice.recommended, _GREEN, "recommended"), (findings.advice.collapse, _RED, "collapsed")
    ):  # fmt: skip
        if point is not None and point.map50_95 is not None:
            axes.axvline(100 * point.value, color=colour, lw=1.5)
            label = f"{text}: {point.budget}, {point.kept:.0%} kept"
            axes.plot(100 * point.value, point.map50_95, "o", color=colour, ms=9, zorder=4, label=label)
    axes.set_ylim(bottom=0)
    axes.set_xticks(xs)
    axes.tick_params(axis="x", labelsize=9)
    if findings.kind != "ratio":
        axes.invert_xaxis()
    axes.legend(loc="best", fontsize=9)
    axes.set_title(f"{findings.accuracy.pictures} training images, {findings.accuracy.boxes} boxes", fontsize=10)


def _groups(axes: Axes, groups: tuple[GroupSensitivity, ...]) -> None:
    known = [(g, g.divergence) for g in groups if g.divergence is not None]
    heights = [divergence for _, divergence in known]
    places = np.arange(len(known))
    axes.bar(places, heights, color=_BLUE, width=0.75)
    axes.set_xticks(places, [_short(g) for g, _ in known], rotation=90, fontsize=7)
    axes.set_xlim(-0.8, len(known) - 0.2)
    top = max(heights, default=1.0) or 1.0
    for place, (group, height) in enumerate(known):
        axes.text(place, height + 0.015 * top, str(group.width), rotation=90, ha="center", va="bottom", fontsize=7,
                  color=_GREY)  # fmt: skip
    axes.set_ylim(0, 1.1 * top)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_ylabel("divergence of the predictions")
    axes.set_title(
        f"about {SHARE:.0%} of each group removed alone, with compensation; the number on a bar is the group's width",
        fontsize=10,
    )


def _short(group: GroupSensitivity) -> str:
    return group.layers[0].removeprefix("model.").removesuffix(".conv")
