"""The section on latency distributions: every sample, not only the median.

An empirical distribution shows its sample size: 40 steps for 40 samples, a curve for 10,000. A tail percentile is
printed only if it has enough samples (edgeprune_device.reports.percentiles).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from edgeprune_device.reports.percentiles import SAMPLES_NEEDED, percentile

from edgeprune.comparison.page import parts, svg, theme
from edgeprune.comparison.page.figures import number, show
from edgeprune.comparison.page.html import Markup, join, tag
from edgeprune.comparison.page.view import PageView, Setting, place, settings
from edgeprune.comparison.row import Row

_STEPS = 240  # most points of a curve; more samples are drawn at even ranks, except for the tail
_TAIL = 40
_LOG_FROM = 12
#: Latencies, ms, ascending.
Latencies = npt.NDArray[np.float64]
_Member = tuple[Row, Latencies]


def section(view: PageView) -> Markup:
    """Render the section: one plot for each machine and runtime."""
    groups = [(where, [(item, latencies) for item in items if len(latencies := samples(item))])
              for where, items in settings(view.items)]  # fmt: skip
    groups = [(where, members) for where, members in groups if members]
    if not groups:
        return parts.quiet("No item has latency samples.")
    keys = (f"latency-{i}" for i in range(len(groups)))
    return join([_group(view, *group, key, len(groups)) for group, key in zip(groups, keys)])


def samples(item: Row) -> Latencies:
    """The latencies of an item, ms, ascending; empty if there are none."""
    times = (item.latency_ms["samples"] if item.latency_ms else None) or []
    return np.sort(np.array([ms for ms in times if number(ms) is not None], dtype=float))


def steps(values: Latencies) -> list[tuple[float, float]]:
    """The corners of the empirical distribution.

    A curve of many samples has corners at even ranks, and at all of the slowest 40.

    Args:
        values: (n,) latencies, ms, ascending.

    Returns:
        (ms, share of the samples up to that latency) of each corner.
    """
    n = len(values)
    ranks = np.arange(n) if n <= _STEPS else np.union1d(np.linspace(0, n - 1, _STEPS).round().astype(int),
                                                       np.arange(n - _TAIL, n))  # fmt: skip
    corners: list[tuple[float, float]] = []
    share = 0.0
    for rank in ranks:
        corners.append((float(values[rank]), share))
        share = (rank + 1) / n
        corners.append((float(values[rank]), share))
    return corners


def _group(view: PageView, where: Setting, members: Sequence[_Member], key: str, count: int) -> Markup:
    lines = [
        (_stroke(view.index(item)), f"{item.name} ({len(latencies):,} sample{'s' if len(latencies) > 1 else ''})")
        for item, latencies in members
    ]
    return join(
        tag("h3", place(where), id=key) if count > 1 else tag("p", "On ", place(where), ".", class_="quiet"),
        svg.both(lambda width, id_: _curves(view, members, width, id_), f"{key}-plot"),
        parts.legend(lines),
        parts.folded("As a table", _table(members, place(where))),
    )


def _stroke(index: int) -> Markup:
    dash = theme.dash(index) or None
    line = tag("path", d="M1 7h26", stroke=theme.colour(index), stroke_width=2.5, stroke_dasharray=dash)
    return tag("svg", line, width=28, height=14, aria_hidden="true")


def _curves(view: PageView, members: Sequence[_Member], width: float, key: str) -> Markup:
    narrow = width < 600
    height, left, right, top, bottom = (300 if narrow else 340), 44, 12, 22, 52
    low = min(float(latencies[0]) for _, latencies in members)
    high = max(float(latencies[-1]) for _, latencies in members)
    log = low > 0 and high / low > _LOG_FROM
    base, pad = height - bottom, 0.04 * ((high - low) or high or 1)
    to = _log10 if log else float
    ends = (to(low * 0.92), to(high * 1.08)) if log else (max(0.0, low - pad), high + pad)
    axis = svg.scale(*ends, left, width - right)
    marks = _log_ticks(low * 0.92, high * 1.08) if log else svg.ticks(*ends, 4 if narrow else 7)
    y = svg.scale(0, 1, base, top)
    drawn = [svg.text(0, 11, "share of images within that time")]
    for share in (0, 0.25, 0.5, 0.75, 0.9, 1):
        drawn.append(svg.line(left, y(share), width - right, y(share), opacity=0.45 if share in (0, 0.5) else 0.13))
        drawn.append(svg.text(left - 6, y(share) + 4, f"{share:.0%}".replace("%", " %"), anchor="end", quiet=True,
                              font_size=11))  # fmt: skip
    for tick in marks:
        drawn.append(svg.line(axis(to(tick)), base, axis(to(tick)), base + 5, opacity=0.4))
        drawn.append(svg.text(axis(to(tick)), base + 18, svg.plain(tick), anchor="middle", quiet=True))
    drawn.append(svg.text(width - right, height - 8, f"inference, ms{', log scale' if log else ''}", anchor="end"))
    for item, latencies in members:
        i = view.index(item)
        corners = [(axis(to(ms)), y(share)) for ms, share in steps(latencies)]
        drawn.append(svg.path(corners, stroke=theme.colour(i), stroke_width=2, stroke_dasharray=theme.dash(i) or None,
                              stroke_linejoin="round"))  # fmt: skip
    description = "; ".join(
        f"{item.name}: half within {show(float(np.median(latencies)), 'ms')}, slowest "
        f"{show(float(latencies[-1]), 'ms')}, {len(latencies)} samples"
        for item, latencies in members
    )
    return svg.chart(width, height, key, "Distribution of the latency", f"{description}.", *drawn)


def _log10(ms: float) -> float:
    return float(np.log10(ms))


def _log_ticks(low: float, high: float) -> list[float]:
    steps_ = [m * 10.0**e for e in range(-3, 6) for m in (1, 2, 5)]
    return [s for s in steps_ if low <= s <= high]


def _table(members: Sequence[_Member], where: str) -> Markup:
    rows = []
    for item, latencies in members:
        listed = latencies.tolist()
        tails = [percentile(listed, p) for p in (50, 90, 95, 99)]
        cells = [show(value, "ms") if value is not None else f"needs {SAMPLES_NEEDED[p]} samples"
                 for p, value in zip((50, 90, 95, 99), tails)]  # fmt: skip
        fastest, slowest = show(listed[0], "ms"), show(listed[-1], "ms")
        rows.append(parts.row(item.name, f"{len(latencies):,}", fastest, *cells, slowest))
    words = parts.quiet("Percentiles from p90 on are upper estimates that hold in 99 of 100 runs.")
    head = ("Item", "Samples", "Fastest", "p50", "p90", "p95", "p99", "Slowest")
    return join(parts.table(f"Latency distribution, {where}", head, rows), words)
