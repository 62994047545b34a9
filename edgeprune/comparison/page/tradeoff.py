"""The section on latency × mAP of all items; a front joins only figures from the same machine and runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from edgeprune.comparison.page import parts, svg, theme
from edgeprune.comparison.page.figures import number, show
from edgeprune.comparison.page.html import Markup, join, tag
from edgeprune.comparison.page.view import PageView, p50, place, setting, settings
from edgeprune.comparison.row import Row

_LOG_FROM = 12  # ratio of slowest to fastest from which the axis is logarithmic, because points would crowd in a corner
#: (left, top, right, bottom) of an area of the plot, px.
_Area = tuple[float, float, float, float]
#: A function from a figure to its position on an axis, px, and the figures of the ticks.
_Axis = tuple[Callable[[float], float], list[float]]


@dataclass
class _Point:
    item: Row
    ms: float
    accuracy: float
    colour: str
    x: float = 0.0
    y: float = 0.0

    @property
    def recorded(self) -> bool:
        return self.item.recorded

    @property
    def caveat(self) -> bool:
        return bool(self.item.caveat)


def front(points: list[tuple[float, float]]) -> list[int]:
    """The indices of the (ms, mAP) points of the Pareto front, fastest first.

    >>> front([(10, 0.30), (5, 0.25), (12, 0.29)])
    [1, 0]
    """
    best, kept = float("-inf"), []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            kept.append(i)
    return kept


def plot(view: PageView, width: float = svg.WIDE, key: str = "pareto") -> Markup:
    """Draw the plot as SVG; without a point it states that there is nothing to plot."""
    points = [
        _Point(item, ms, accuracy, theme.colour(view.index(item)))
        for item in view.items
        if (ms := p50(item)) is not None and (accuracy := number(item.map50_95)) is not None
    ]
    if not points:
        words = "No item has both a latency and an mAP: there is nothing to plot."
        return svg.chart(width, 60, key, "Latency against mAP", words, svg.text(0, 34, words, font_size=13))
    narrow = width < 600
    height = 380 if narrow else 460
    left, right, top, bottom = (48, 14, 22, 58) if narrow else (58, 28, 24, 60)
    axes = _axes(points, width, height, (left, right, top, bottom))
    fronts = [corners for _, items in settings(view.items) if (corners := _front(points, items))]
    lines = [svg.path(corners, stroke="currentColor", stroke_opacity=0.45, stroke_width=1.5) for corners in fronts]
    marks = [svg.marker(int(p.recorded), p.x, p.y, p.colour, tag("title", _words(p)), hollow=p.caveat) for p in points]
    labels = _labels(points, fronts, (left, width - right, top, height - bottom), 11.5 if narrow else 12.5)
    desc = "; ".join(_words(p) for p in points)
    title = "Latency against mAP50-95: left is faster, up is better"
    return svg.chart(width, height, key, title, f"{desc}.", axes, lines, marks, labels)


def _words(p: _Point) -> str:
    text = f"{p.item.name}: {show(p.ms, 'ms')}, mAP50-95 {show(p.accuracy, 'map')}"
    return text + (", recorded" if p.recorded else "") + (", see note" if p.caveat else "")


def _axes(points: list[_Point], width: float, height: float, margins: _Area) -> Markup:
    """Draw grid, ticks and titles, and set the positions of the points.

    Args:
        points: the points.
        width: width of the plot, px.
        height: height of the plot, px.
        margins: (left, right, top, bottom), px.
    """
    left, right, top, bottom = margins
    times, scores = [p.ms for p in points], [p.accuracy for p in points]
    log = min(times) > 0 and max(times) / min(times) > _LOG_FROM
    x, x_ticks = _log_axis(times, left, width - right) if log else _axis(times, left, width - right, 0.09, 6)
    y, y_ticks = _axis(scores, height - bottom, top, 0.12, 6, 0.02)
    for p in points:
        p.x, p.y = x(p.ms), y(p.accuracy)
    parts: list[Any] = []
    for tick in y_ticks:
        parts.append(svg.line(left, y(tick), width - right, y(tick), opacity=0.13))
        parts.append(svg.text(left - 8, y(tick) + 4, svg.plain(tick), anchor="end", quiet=True))
    for tick in x_ticks:
        parts.append(svg.line(x(tick), height - bottom, x(tick), height - bottom + 5, opacity=0.4))
        parts.append(svg.text(x(tick), height - bottom + 19, svg.plain(tick), anchor="middle", quiet=True))
    parts.append(svg.line(left, height - bottom, width - right, height - bottom, opacity=0.45))
    scale_words = ", log scale" if log else ""
    parts.append(svg.text(width - right, height - 14, f"inference, ms p50{scale_words} (left is faster)", anchor="end"))
    parts.append(svg.text(0, 11, "mAP50-95 (up is better)"))
    return join(parts)


def _axis(values: list[float], start: float, end: float, pad: float, about: int, least: float = 0.0) -> _Axis:
    """Make a linear scale over the values with space around them, never below zero."""
    span = max(max(values) - min(values), least, 0.05 * max(values), 1e-9)
    middle = (max(values) + min(values)) / 2
    low, high = max(0.0, middle - span * (0.5 + pad)), middle + span * (0.5 + pad)
    return svg.scale(low, high, start, end), svg.ticks(low, high, about)


def _log_axis(values: list[float], start: float, end: float) -> _Axis:
    """Make a logarithmic scale over the values with space around them."""
    low, high = math.log10(min(values) * 0.8), math.log10(max(values) * 1.25)
    place_of = svg.scale(low, high, start, end)
    steps = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    return (lambda value: place_of(math.log10(value))), [s for s in steps if low <= math.log10(s) <= high]


def _front(points: list[_Point], items: Sequence[Row]) -> list[tuple[float, float]]:
    """The corners of the front's line for one machine and runtime; figures with a caveat are left out."""
    mine = [p for p in points if not p.caveat and any(p.item is item for item in items)]
    kept = [mine[i] for i in front([(p.ms, p.accuracy) for p in mine])]
    corners = [(p.x, p.y) for p in kept[:1]]
    for p in kept[1:]:
        corners += [(p.x, corners[-1][1]), (p.x, p.y)]
    return corners if len(kept) > 1 else []


def _labels(points: list[_Point], fronts: list[list[tuple[float, float]]], box: _Area, size: float) -> Markup:
    """Place names near their points without overlapping a name, point or front; a thin line leads to a distant name."""
    left, right, top, bottom = box
    taken = [(p.x - 8, p.y - 8, p.x + 8, p.y + 8) for p in points]
    for corners in fronts:
        for (x1, y1), (x2, y2) in pairwise(corners):
            taken.append((min(x1, x2) - 1, min(y1, y2) - 1, max(x1, x2) + 1, max(y1, y2) + 1))
    drawn = []
    for p in sorted(points, key=lambda p: p.y):
        name = svg.short(p.item.name, 20 if right < 600 else 34)
        wide = svg.width_of(name, size)
        for x, y, far in _places(p, wide):
            area = (x, y - size, x + wide, y + 3)
            inside = left <= x and area[2] <= right + 14 and area[1] >= top - 16 and area[3] <= bottom
            if inside and not any(_overlap(area, other) for other in taken):
                taken.append(area)
                if far:
                    end = min(max(p.x, x), x + wide), y + 4 if y < p.y else y - size
                    drawn.append(svg.line(p.x, p.y, *end, opacity=0.35))
                weight = 600 if p.colour == theme.colour(0) else None
                drawn.append(svg.text(x, y, name, font_size=size, font_weight=weight))
                break  # a name that does not fit is only in the table
    return join(drawn)


def _places(p: _Point, wide: float) -> Iterator[tuple[float, float, bool]]:
    """Yield positions for a name, best first, and whether each is distant from its point."""
    yield p.x + 12, p.y + 4, False
    yield p.x - wide / 2, p.y - 12, False
    yield p.x + 6, p.y - 11, False
    yield p.x - wide / 2, p.y + 22, False
    yield p.x + 6, p.y + 20, False
    yield p.x - 12 - wide, p.y + 4, False
    yield p.x - 6 - wide, p.y - 11, False
    yield p.x - 6 - wide, p.y + 20, False
    for away in (30, 46, 62, 80, 100, 125):
        for dx in (-wide / 2, 10, -wide - 10):
            yield p.x + dx, p.y + away, True
            yield p.x + dx, p.y - away, True


def _overlap(a: _Area, b: _Area) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def section(view: PageView) -> Markup:
    """Render the plot, its legend and its table, with the reasons why items are not plotted."""
    missing = [item for item in view.items if p50(item) is None or number(item.map50_95) is None]
    left_out = [tag("li", tag("b", item.name), ": ", _why(item)) for item in missing]
    plotted = len(missing) < len(view.items)
    return join(
        svg.both(lambda width, key: plot(view, width, key), "pareto"),
        _legend(view) if plotted else None,
        tag("div", tag("p", "Not plotted:"), tag("ul", left_out), class_="aside") if left_out else None,
        parts.folded("As a table", _table(view)) if plotted else None,
    )


def _why(item: Row) -> str:
    lacks = [word for word, value in (("latency", p50(item)), ("mAP", number(item.map50_95))) if value is None]
    known = show(item.map50_95, "map") if lacks == ["latency"] else show(p50(item), "ms")
    if len(lacks) == 2:
        return "latency and mAP not measured"
    return f"{lacks[0]} not measured ({'mAP50-95' if lacks == ['latency'] else 'p50'} {known})"


def _legend(view: PageView) -> Markup:
    def sample(shape: int, hollow: bool = False) -> Markup:
        mark = svg.marker(shape, 9, 9, "currentColor", hollow=hollow)
        return tag("svg", mark, width=18, height=18, aria_hidden="true", fill="currentColor")

    step = tag("path", d="M1 12h8V5h8", fill="none", stroke="currentColor", stroke_width=1.5)
    entries = [(sample(0), "measured in this run")]
    if any(item.recorded for item in view.items):
        entries.append((sample(1), "recorded in another run, perhaps on another machine"))
    if any(item.caveat for item in view.items):
        entries.append((sample(0, hollow=True), "hollow: not part of a front, see the item's note"))
    entries.append((tag("svg", step, width=18, height=18, aria_hidden="true"),
                    "front: no other item on the same machine and runtime is both faster and better"))  # fmt: skip
    return parts.legend(entries)


def _table(view: PageView) -> Markup:
    rows = [
        parts.row(
            item.name, show(p50(item), "ms"), show(item.map50_95, "map"),
            tag("td", place(where) if (where := setting(item)) else "–", class_="words"),
        )
        for item in view.items
    ]  # fmt: skip
    return parts.table("Latency and accuracy", ("Item", "p50", "mAP50-95", parts.left("Measured on")), rows)
