"""The section of average precision by class and its change, because an overall mAP hides the class that was lost."""

from __future__ import annotations

from edgeprune.comparison import per_class
from edgeprune.comparison.page import figures, parts, svg, theme
from edgeprune.comparison.page.figures import number, show
from edgeprune.comparison.page.html import Markup, join, tag
from edgeprune.comparison.page.view import PageView, same_pictures

_CHARTED = 24


def section(view: PageView) -> Markup:
    """Render the section: a chart of the delivered model's classes, and a table of all models."""
    first = view.first
    if not first or not first.get("per_class"):
        return parts.quiet("No AP by class was measured for what is compared with.")
    others = [item for item in view.shipped if item.get("per_class") and same_pictures(first, item)]
    before = {c["name"]: c for c in first["per_class"]}
    names = list(before)
    if not names:
        return parts.quiet("No class had a box on these pictures.")
    few = [name for name in names if per_class.few(before[name])]
    said = f"{len(few)} class{'es have' if len(few) != 1 else ' has'} fewer than {per_class.FEW_BOXES} boxes"
    shown = others[-1:] if view.delivered not in others else [view.delivered]
    return join(
        _chart(view, first, shown[0], names) if shown else None,
        parts.quiet(f"† {said}: one box moves its AP by points, so its change is uncertain.") if few else None,
        _table(first, others, names, folded=len(names) > _CHARTED),
    )  # fmt: skip


def _ap(item: dict, name: str) -> float | None:
    found = next((c for c in item["per_class"] if c["name"] == name), None)
    return number(found.get("map50_95")) if found else None


def _chart(view: PageView, first: dict, item: dict, names: list[str]) -> Markup:
    """Draw from the original's AP to the delivered model's, the worst loss on top."""
    pairs = [(name, _ap(first, name), _ap(item, name)) for name in names]
    pairs = [(name, a, b) for name, a, b in pairs if a is not None and b is not None]
    pairs.sort(key=lambda pair: pair[2] - pair[1])
    if not pairs:
        return parts.quiet("No class has an AP in both.")
    boxes = {c["name"]: c for c in first["per_class"]}
    colour = theme.colour(view.index(item))
    said = None
    if len(pairs) > _CHARTED:
        said = f"The {_CHARTED} worst of {len(pairs)} classes are drawn; the table has all."

    def draw(width: float, key: str) -> Markup:
        return _dumbbells(pairs[:_CHARTED], boxes, colour, width, key, first["name"], item["name"])

    was = svg.marker(0, 8, 8, theme.colour(0), hollow=True, size=5)
    now = svg.marker(0, 8, 8, colour, size=5)
    ring, dot = (tag("svg", mark, width=16, height=16, aria_hidden="true") for mark in (was, now))
    return join(
        tag("p", "AP50-95 of ", tag("b", first["name"]), " → ", tag("b", item["name"]), ", worst loss first. ", said),
        svg.both(draw, "classes"),
        parts.legend([(ring, first["name"]), (dot, item["name"])]),
    )


def _dumbbells(pairs, boxes, colour, width, key, was: str, now: str) -> Markup:
    narrow = width < 600
    pitch, top = (36 if narrow else 26), 6
    left, right = (6, 62) if narrow else (210, 74)
    height = top + pitch * len(pairs) + 38
    x = svg.scale(0, _round_up(max(max(a, b) for _, a, b in pairs)), left, width - right)
    base = height - 36
    drawn = []
    for tick in svg.ticks(0, _round_up(max(max(a, b) for _, a, b in pairs)), 4 if narrow else 8):
        drawn.append(svg.line(x(tick), top, x(tick), base, opacity=0.13 if tick else 0.4))
        drawn.append(svg.text(x(tick), base + 16, svg.plain(tick), anchor="middle", quiet=True, font_size=11))
    drawn.append(svg.text(width - right, height - 4, "AP50-95", anchor="end", font_size=11.5))
    for i, (name, a, b) in enumerate(pairs):
        few = per_class.few(boxes[name])
        label = f"{svg.short(name, 24)}{' †' if few else ''}"
        y = top + pitch * i + (26 if narrow else pitch / 2)
        if narrow:
            drawn.append(svg.text(left, y - 12, label, font_size=11.5))
        else:
            drawn.append(svg.text(left - 12, y + 4, label, anchor="end"))
        words = f"{name}, {boxes[name].get('boxes')} boxes: {was} {show(a, 'map')}, {now} {show(b, 'map')}"
        drawn.append(
            tag("g", tag("title", words),
                tag("line", x1=svg.px(x(a)), y1=svg.px(y), x2=svg.px(x(b)), y2=svg.px(y), stroke=colour, stroke_width=3,
                    stroke_dasharray="2 2" if few else None),
                svg.marker(0, x(a), y, theme.colour(0), hollow=True, size=5), svg.marker(0, x(b), y, colour, size=5))
        )  # fmt: skip
        change = figures.accuracy(a, b)
        drawn.append(svg.text(width, y + 4, change.text, anchor="end", style=_ink(change.sense),
                              font_weight=None if few else 600))  # fmt: skip
    desc = "; ".join(f"{name} {show(a, 'map')} to {show(b, 'map')}" for name, a, b in pairs)
    return svg.chart(width, height, key, f"AP by class, {was} and {now}", f"{desc}.", *drawn)


def _ink(sense: str) -> str | None:
    return {"better": "fill:var(--good,currentColor)", "worse": "fill:var(--bad,currentColor)"}.get(sense)


def _round_up(value: float) -> float:
    """The end of the axis: the next tenth, 1 at most."""
    return min(1.0, max(0.1, -(-value * 10 // 1) / 10)) if value > 0 else 0.1


def _table(first: dict, others: list[dict], names: list[str], folded: bool) -> Markup:
    boxes = {c["name"]: c for c in first["per_class"]}
    rows = []
    for name in names:
        before = _ap(first, name)
        count, few = number(boxes[name].get("boxes")), " †" if per_class.few(boxes[name]) else None
        cells = [tag("td", "–" if count is None else f"{count:,}", few), tag("td", show(before, "map"))]
        for item in others:
            change = figures.accuracy(before, _ap(item, name))
            small = tag("small", change.text, class_=parts.SENSES[change.sense]) if change else None
            cells.append(tag("td", show(_ap(item, name), "map"), small))
        rows.append(parts.row(name, *cells, class_="few" if per_class.few(boxes[name]) else None))
    head = ("Class", "Boxes", first["name"], *(item["name"] for item in others))
    whole = parts.table("AP50-95 by class", head, rows, class_="classes")
    return parts.folded(f"All {len(names)} classes", whole) if folded else whole
