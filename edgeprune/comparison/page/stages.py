"""The section on latency by stage: decode, pre, infer and post of one image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from edgeprune.comparison.page import parts, svg, theme
from edgeprune.comparison.page.figures import number, show
from edgeprune.comparison.page.html import Markup, join, tag
from edgeprune.comparison.page.view import PageView
from edgeprune.comparison.row import Row

_NAMES = ("decode", "pre", "infer", "post")
_MEANING = {"decode": "image file to pixels", "pre": "letterbox and scaling", "infer": "the network",
            "post": "boxes and NMS"}  # fmt: skip


def section(view: PageView) -> Markup:
    """Render the section: bars, and the same figures as a table."""
    items = [item for item in view.items if _of(item)]
    if not items:
        return parts.quiet("No item has a latency by stage.")
    items.sort(key=lambda item: item.recorded)
    lacking = [item.name for item in view.items if not _of(item)]
    return join(
        svg.both(lambda width, key: _bars(items, width, key), "stages"),
        parts.legend([(parts.swatch(theme.STAGES[n]), f"{n}: {_MEANING[n]}") for n in _NAMES]),
        parts.quiet("Not measured by stage: ", ", ".join(lacking), ".") if lacking else None,
        parts.folded("As a table", _table(items)),
    )


def _of(item: Row) -> dict[str, float]:
    """The measured stages of an item, in order."""
    stages = item.stages_ms or {}
    return {name: stages[name] for name in _NAMES if number(stages.get(name)) is not None}


def _where(item: Row) -> str:
    if not item.recorded:
        return "this machine"
    return f"recorded on {item.machine or 'an unknown machine'}"


def _bars(items: Sequence[Row], width: float, key: str) -> Markup:
    """Draw one bar per item on a common scale, grouped by machine."""
    narrow = width < 600
    left = 0 if narrow else 210
    pitch, thick = (48, 22) if narrow else (34, 24)
    most = max(sum(_of(item).values()) for item in items)
    x = svg.scale(0, most, left, width - 72)
    y, drawn = 4.0, []
    several = len({_where(item) for item in items}) > 1
    for where, group in groupby(items, key=_where):
        if several:
            drawn.append(svg.text(0, y + 14, svg.short(where, 46 if narrow else 90), font_weight=600))
            y += 26
        for item in group:
            name = svg.short(item.name, 34 if narrow else 28)
            drawn.append(svg.text(0, y + (12 if narrow else thick / 2 + 4.5), name))
            drawn.append(_bar(item, x, y + (18 if narrow else 0), thick))
            y += pitch
        y += 8
    desc = "; ".join(f"{i.name}: " + ", ".join(f"{n} {show(v, 'ms')}" for n, v in _of(i).items()) for i in items)
    return svg.chart(width, y, key, "Latency by stage, p50 of each", f"{desc}.", *drawn)


def _bar(item: Row, x: Callable[[float], float], y: float, thick: float) -> Markup:
    drawn: list[Markup] = []
    done = 0.0
    for name, took in _of(item).items():
        start, end = x(done), x(done + took)
        drawn.append(
            svg.rect(start, y, end - start - (1.5 if end - start > 3 else 0), thick,
                     tag("title", f"{item.name}, {name}: {show(took, 'ms')}"), fill=theme.STAGES[name])
        )  # fmt: skip
        for words in (f"{name} {show(took, 'ms')}", show(took, "ms").removesuffix(" ms"), name):
            if svg.width_of(words, 11) + 8 < end - start:
                drawn.append(svg.text(start + 5, y + thick / 2 + 4, words, font_size=11, fill="#fff"))
                break
        done += took
    drawn.append(svg.text(x(done) + 6, y + thick / 2 + 4.5, show(done, "ms"), font_weight=600))
    return join(drawn)


def _table(items: Sequence[Row]) -> Markup:
    rows = [
        parts.row(
            item.name, *(show(_of(item).get(n), "ms") for n in _NAMES), show(sum(_of(item).values()), "ms"),
            show(item.fps_end_to_end, "fps"), tag("td", _where(item), class_="words"),
        )
        for item in items
    ]  # fmt: skip
    head = ("Item", *_NAMES, "sum of the medians", "end to end", parts.left("Measured on"))
    return parts.table("Latency by stage", head, rows)
