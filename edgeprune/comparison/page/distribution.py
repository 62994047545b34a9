"""The section of latency distributions: every sample, not only the median.

An empirical distribution shows its sample size: 40 steps for 40 samples, a curve for 10,000. A tail percentile is
stated only if there are enough samples for it (edgeprune_device.reports.percentiles).
"""

from __future__ import annotations

import numpy as np
from edgeprune_device.reports.percentiles import SAMPLES_NEEDED, percentile

from edgeprune.comparison.page import parts, svg, theme
from edgeprune.comparison.page.figures import number, show
from edgeprune.comparison.page.html import Markup, join, tag
from edgeprune.comparison.page.view import PageView, place, settings

_STEPS = 240  # points of a curve: more samples are drawn at even ranks, with the whole tail
_TAIL = 40
_LOG_FROM = 12


def section(view: PageView) -> Markup:
    """Render the section: one plot for each machine and runtime."""
    groups = [(where, [(item, found) for item in items if len(found := samples(item))])
              for where, items in settings(view.items)]  # fmt: skip
    groups = [(where, members) for where, members in groups if members]
    if not groups:
        return parts.quiet("No item has the samples of its latency.")
    keys = (f"latency-{i}" for i in range(len(groups)))
    return join([_group(view, *group, key, len(groups)) for group, key in zip(groups, keys)])


def samples(item: dict) -> np.ndarray:
    """The latencies of an item, ms, ascending; empty if there are none."""
    given = (item.get("latency_ms") or {}).get("samples") or []
    return np.sort(np.array([value for value in given if number(value) is not None], dtype=float))


def steps(values: np.ndarray) -> list[tuple[float, float]]:
    """The corners of the empirical distribution.

    A curve of many samples has corners at even ranks, and at each of the slowest 40.

    Args:
        values: (n,) latencies, ms, ascending.

    Returns:
        (ms, share of the samples up to that) of each corner.
    """
    n = len(values)
    ranks = np.arange(n) if n <= _STEPS else np.union1d(np.linspace(0, n - 1, _STEPS).round().astype(int),
                                                       np.arange(n - _TAIL, n))  # fmt: skip
    corners, share = [], 0.0
    for rank in ranks:
        corners.append((float(values[rank]), share))
        share = (rank + 1) / n
        corners.append((float(values[rank]), share))
    return corners


def _group(view: PageView, where: tuple, members: list[tuple[dict, np.ndarray]], key: str, count: int) -> Markup:
    lines = [
        (_stroke(view.index(item)), f"{item['name']} ({len(found):,} sample{'s' if len(found) > 1 else ''})")
        for item, found in members
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


def _curves(view: PageView, members: list, width: float, key: str) -> Markup:
    narrow = width < 600
    height, left, right, top, bottom = (300 if narrow else 340), 44, 12, 22, 52
    low, high = min(found[0] for _, found in members), max(found[-1] for _, found in members)
    log = low > 0 and high / low > _LOG_FROM
    base, pad = height - bottom, 0.04 * ((high - low) or high or 1)
    to = (lambda ms: np.log10(ms)) if log else (lambda ms: ms)
    ends = (to(low * 0.92), to(high * 1.08)) if log else (max(0.0, low - pad), high + pad)
    axis = svg.scale(*ends, left, width - right)
    marks = _log_ticks(low * 0.92, high * 1.08) if log else svg.ticks(*ends, 4 if narrow else 7)
    y = svg.scale(0, 1, base, top)
    drawn = [svg.text(0, 11, "share of pictures done within that time")]
    for share in (0, 0.25, 0.5, 0.75, 0.9, 1):
        drawn.append(svg.line(left, y(share), width - right, y(share), opacity=0.45 if share in (0, 0.5) else 0.13))
        drawn.append(svg.text(left - 6, y(share) + 4, f"{share:.0%}".replace("%", " %"), anchor="end", quiet=True,
                              font_size=11))  # fmt: skip
    for tick in marks:
        drawn.append(svg.line(axis(to(tick)), base, axis(to(tick)), base + 5, opacity=0.4))
        drawn.append(svg.text(axis(to(tick)), base + 18, svg.plain(tick), anchor="middle", quiet=True))
    drawn.append(svg.text(width - right, height - 8, f"inference, ms{', log scale' if log else ''}", anchor="end"))
    for item, found in members:
        i = view.index(item)
        corners = [(axis(to(ms)), y(share)) for ms, share in steps(found)]
        drawn.append(svg.path(corners, stroke=theme.colour(i), stroke_width=2, stroke_dasharray=theme.dash(i) or None,
                              stroke_linejoin="round"))  # fmt: skip
    said = "; ".join(f"{item['name']}: half within {show(float(np.median(found)), 'ms')}, slowest "
                     f"{show(float(found[-1]), 'ms')}, {len(found)} samples" for item, found in members)  # fmt: skip
    return svg.chart(width, height, key, "Distribution of the latency", f"{said}.", *drawn)


def _log_ticks(low: float, high: float) -> list[float]:
    steps_ = [m * 10.0**e for e in range(-3, 6) for m in (1, 2, 5)]
    return [s for s in steps_ if low <= s <= high]


def _table(members: list, where: str) -> Markup:
    rows = []
    for item, found in members:
        listed = found.tolist()
        tails = [percentile(listed, p) for p in (50, 90, 95, 99)]
        cells = [show(value, "ms") if value is not None else f"takes {SAMPLES_NEEDED[p]} samples"
                 for p, value in zip((50, 90, 95, 99), tails)]  # fmt: skip
        rows.append(parts.row(item["name"], f"{len(found):,}", show(listed[0], "ms"), *cells, show(listed[-1], "ms")))
    words = parts.quiet("p90 and above are upper estimates that hold in 99 of 100 runs, given where samples suffice.")
    head = ("Item", "Samples", "Fastest", "p50", "p90", "p95", "p99", "Slowest")
    return join(parts.table(f"Latency distribution, {where}", head, rows), words)
