"""The section on average precision by class, because an overall mAP hides the class that was lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgeprune.comparison.page import figures, parts, svg, theme
from edgeprune.comparison.page.figures import number, show
from edgeprune.comparison.page.html import Markup, join, tag
from edgeprune.comparison.page.view import PageView, same_pictures
from edgeprune.comparison.row import Row
from edgeprune.measuring import per_class
from edgeprune.measuring.per_class import ClassFigures

_CHARTED = 24


class _ClassChange(NamedTuple):
    """The average precision of one class in two items.

    Attributes:
        name: name of the class.
        before: AP50-95 of the first item.
        after: AP50-95 of the other item.
    """

    name: str
    before: float
    after: float


def section(view: PageView) -> Markup:
    """Render the section: a chart of the delivered model's classes, and a table of all models."""
    first = view.first
    if not first.per_class:
        return parts.quiet("AP by class was not measured for the reference.")
    others = [item for item in view.shipped if item.per_class and same_pictures(first, item)]
    before = _by_name(first)
    names = list(before)
    few = [name for name in names if per_class.few(before[name])]
    note = f"{len(few)} class{'es have' if len(few) != 1 else ' has'} fewer than {per_class.FEW_BOXES} boxes"
    delivered = view.delivered
    shown = delivered if delivered in others else others[-1] if others else None
    return join(
        _chart(view, first, shown, names) if shown else None,
        parts.quiet(f"† {note}: one box changes the AP by points, so the change is uncertain.") if few else None,
        _table(first, others, names, folded=len(names) > _CHARTED),
    )  # fmt: skip


def _by_name(item: Row) -> dict[str, ClassFigures]:
    return {entry["name"]: entry for entry in item.per_class or ()}


def _ap(item: Row, name: str) -> float | None:
    entry = next((c for c in item.per_class or () if c["name"] == name), None)
    return number(entry["map50_95"]) if entry else None


def _chart(view: PageView, first: Row, item: Row, names: list[str]) -> Markup:
    """Draw a line from the original's AP to the delivered model's for each class, the worst loss first."""
    changes = [
        _ClassChange(name, before, after)
        for name in names
        if (before := _ap(first, name)) is not None and (after := _ap(item, name)) is not None
    ]
    changes.sort(key=lambda change: change.after - change.before)
    if not changes:
        return parts.quiet("No class has an AP in both models.")
    colour = theme.colour(view.index(item))
    note = None
    if len(changes) > _CHARTED:
        note = f"The chart shows the {_CHARTED} worst of {len(changes)} classes; the table shows all."

    def draw(width: float, key: str) -> Markup:
        return _dumbbells(changes[:_CHARTED], (first, item), colour, width, key)

    was = svg.marker(0, 8, 8, theme.colour(0), hollow=True, size=5)
    now = svg.marker(0, 8, 8, colour, size=5)
    ring, dot = (tag("svg", mark, width=16, height=16, aria_hidden="true") for mark in (was, now))
    return join(
        tag("p", "AP50-95 of ", tag("b", first.name), " → ", tag("b", item.name), ", worst loss first. ", note),
        svg.both(draw, "classes"),
        parts.legend([(ring, first.name), (dot, item.name)]),
    )


def _dumbbells(
    changes: Sequence[_ClassChange], compared: tuple[Row, Row], colour: str, width: float, key: str
) -> Markup:
    first, item = compared
    boxes = _by_name(first)
    narrow = width < 600
    pitch, top = (36 if narrow else 26), 6
    left, right = (6, 62) if narrow else (210, 74)
    height = top + pitch * len(changes) + 38
    end = _round_up(max(max(change.before, change.after) for change in changes))
    x = svg.scale(0, end, left, width - right)
    base = height - 36
    drawn = []
    for tick in svg.ticks(0, end, 4 if narrow else 8):
        drawn.append(svg.line(x(tick), top, x(tick), base, opacity=0.13 if tick else 0.4))
        drawn.append(svg.text(x(tick), base + 16, svg.plain(tick), anchor="middle", quiet=True, font_size=11))
    drawn.append(svg.text(width - right, height - 4, "AP50-95", anchor="end", font_size=11.5))
    for i, (name, a, b) in enumerate(changes):
        few = per_class.few(boxes[name])
        label = f"{svg.short(name, 24)}{' †' if few else ''}"
        y = top + pitch * i + (26 if narrow else pitch / 2)
        if narrow:
            drawn.append(svg.text(left, y - 12, label, font_size=11.5))
        else:
            drawn.append(svg.text(left - 12, y + 4, label, anchor="end"))
        words = f"{name}, {boxes[name]['boxes']} boxes: {first.name} {show(a, 'map')}, {item.name} {show(b, 'map')}"
        drawn.append(
            tag("g", tag("title", words),
                tag("line", x1=svg.px(x(a)), y1=svg.px(y), x2=svg.px(x(b)), y2=svg.px(y), stroke=colour, stroke_width=3,
                    stroke_dasharray="2 2" if few else None),
                svg.marker(0, x(a), y, theme.colour(0), hollow=True, size=5), svg.marker(0, x(b), y, colour, size=5))
        )  # fmt: skip
        if change := figures.accuracy(a, b):
            drawn.append(svg.text(width, y + 4, change.text, anchor="end", style=_ink(change.sense),
                                  font_weight=None if few else 600))  # fmt: skip
    desc = "; ".join(f"{name} {show(a, 'map')} to {show(b, 'map')}" for name, a, b in changes)
    return svg.chart(width, height, key, f"AP by class, {first.name} and {item.name}", f"{desc}.", *drawn)


def _ink(sense: str) -> str | None:
    return {"better": "fill:var(--good,currentColor)", "worse": "fill:var(--bad,currentColor)"}.get(sense)


def _round_up(value: float) -> float:
    """The end of the axis: the next tenth, at most 1."""
    return min(1.0, max(0.1, -(-value * 10 // 1) / 10)) if value > 0 else 0.1


def _table(first: Row, others: Sequence[Row], names: list[str], folded: bool) -> Markup:
    boxes = _by_name(first)
    rows = []
    for name in names:
        before = _ap(first, name)
        count, few = number(boxes[name]["boxes"]), " †" if per_class.few(boxes[name]) else None
        cells = [tag("td", "–" if count is None else f"{count:,}", few), tag("td", show(before, "map"))]
        for item in others:
            change = figures.accuracy(before, _ap(item, name))
            small = tag("small", change.text, class_=parts.SENSES[change.sense]) if change else None
            cells.append(tag("td", show(_ap(item, name), "map"), small))
        rows.append(parts.row(name, *cells, class_="few" if per_class.few(boxes[name]) else None))
    head = ("Class", "Boxes", first.name, *(item.name for item in others))
    whole = parts.table("AP50-95 by class", head, rows, class_="classes")
    return parts.folded(f"All {len(names)} classes", whole) if folded else whole
