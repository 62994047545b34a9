"""The plot of an analysis: accuracy against budget above, the sensitivity of every group below."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.analysis.findings import COLLAPSE, KEEP, SHARE, Findings, GroupSensitivity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _GREEN, _RED, _GREY = "#1f5fa8", "#2a8a3e", "#c0392b", "#777777"
_COUNTED = {"macs": "multiply-accumulates left", "params": "parameters left", "ratio": "prunable channels removed"}


def figure(found: Findings) -> Figure:
    """The plot as a matplotlib Figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = max(9.0, 1.5 + 0.2 * len(found.groups))
    drawn = Figure(figsize=(width, 9.5), dpi=120, layout="constrained")
    FigureCanvasAgg(drawn)
    above, below = drawn.subplots(2, 1, height_ratios=(1, 1.1))
    drawn.suptitle(f"{found.name} at {found.imgsz} px, pruned and compensated, before any training", fontsize=12)
    _whole(above, found)
    _groups(below, found.groups)
    return drawn


def png(found: Findings) -> bytes:
    """The plot as the bytes of a PNG file."""
    stream = io.BytesIO()
    figure(found).savefig(stream, format="png")
    return stream.getvalue()


def _whole(axes, found: Findings) -> None:
    base = found.accuracy.map50_95
    axes.set_xlabel(f"{_COUNTED[found.kind]}, % (the cut grows to the right)")
    axes.set_ylabel("mAP50-95")
    axes.grid(alpha=0.3)
    if base is None:
        axes.text(0.5, 0.5, "no labelled box on these pictures", transform=axes.transAxes, ha="center")
        return
    uncut = 0.0 if found.kind == "ratio" else 1.0
    xs = 100 * np.array([uncut, *(r.value for r in found.rungs)])
    axes.plot(xs, [base, *(r.map50_95 for r in found.rungs)], "o-", color=_BLUE, zorder=3, label="measured")
    if base > 0:
        low, high = np.array([r.interval for r in found.rungs]).T * base
        axes.fill_between(xs[1:], low, high, color=_BLUE, alpha=0.15, lw=0, label="95 % of what is kept, over pictures")
        for share, colour in ((KEEP, _GREEN), (COLLAPSE, _RED)):
            axes.axhline(share * base, color=colour, ls=":", lw=1, label=f"{share:.0%} of the uncut")
    for rung, colour, text in (
        (found.advice.recommended, _GREEN, "recommended"), (found.advice.collapse, _RED, "collapsed")
    ):  # fmt: skip
        if rung is not None:
            axes.axvline(100 * rung.value, color=colour, lw=1.5)
            said = f"{text}: {rung.budget}, {rung.kept:.0%} kept"
            axes.plot(100 * rung.value, rung.map50_95, "o", color=colour, ms=9, zorder=4, label=said)
    axes.set_ylim(bottom=0)
    axes.set_xticks(xs)
    axes.tick_params(axis="x", labelsize=9)
    if found.kind != "ratio":
        axes.invert_xaxis()
    axes.legend(loc="best", fontsize=9)
    axes.set_title(f"{found.accuracy.pictures} training pictures, {found.accuracy.boxes} boxes", fontsize=10)


def _groups(axes, groups: tuple[GroupSensitivity, ...]) -> None:
    known = [g for g in groups if g.divergence is not None]
    places = np.arange(len(known))
    axes.bar(places, [g.divergence for g in known], color=_BLUE, width=0.75)
    axes.set_xticks(places, [_short(g) for g in known], rotation=90, fontsize=7)
    axes.set_xlim(-0.8, len(known) - 0.2)
    top = max([g.divergence for g in known], default=1.0) or 1.0
    for place, group in zip(places, known):
        axes.text(place, group.divergence + 0.015 * top, group.width, rotation=90, ha="center", va="bottom", fontsize=7,
                  color=_GREY)  # fmt: skip
    axes.set_ylim(0, 1.1 * top)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_ylabel("divergence of the predictions")
    axes.set_title(
        f"each group cut alone by about {SHARE:.0%}, its readers re-solved; on each bar the width of the group",
        fontsize=10,
    )


def _short(group: GroupSensitivity) -> str:
    return group.layers[0].removeprefix("model.").removesuffix(".conv")
