"""Building blocks of the charts: scales, ticks, labels, and the SVG around them; independent of models.

A chart is drawn twice, for a wide screen and for a phone, because text that is only scaled down cannot be read at
360 px. The style sheet shows one of the two. Lines and text use `currentColor`, so a chart matches the page or notebook
around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from edgeprune.comparison.page.html import Markup, join, tag

WIDE, NARROW = 920, 360  # px of the view box
_FONT = "system-ui,-apple-system,'Segoe UI',Roboto,sans-serif"


def both(draw: Callable[[int, str], Markup], key: str) -> Markup:
    """Draw a chart with draw(width, id) for a wide screen and for a phone."""
    wide, narrow = draw(WIDE, f"{key}-wide"), draw(NARROW, f"{key}-narrow")
    return join(tag("div", wide, class_="wide"), tag("div", narrow, class_="narrow"))


def chart(width: float, height: float, key: str, title: str, desc: str, *children: Any) -> Markup:
    """The outer SVG, with a title and a description for screen readers."""
    return tag(
        "svg", tag("title", title, id=f"{key}-title"), tag("desc", desc, id=f"{key}-desc"), *children,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {px(width)} {px(height)}", role="img", id=key,
        aria_labelledby=f"{key}-title", aria_describedby=f"{key}-desc", font_family=_FONT, font_size=12.5,
        fill="currentColor", style=f"display:block;width:100%;max-width:{px(width * 1.3)}px;height:auto",
    )  # fmt: skip


def text(x: float, y: float, words: Any, *, anchor: str = "start", quiet: bool = False, **more: Any) -> Markup:
    """A text element at a position, px."""
    opacity = 0.72 if quiet else None
    return tag("text", words, x=px(x), y=px(y), text_anchor=anchor if anchor != "start" else None,
               fill_opacity=opacity, **more)  # fmt: skip


def line(x1: float, y1: float, x2: float, y2: float, *, opacity: float = 0.16, **more: Any) -> Markup:
    """A straight line between two positions, px."""
    ends = {"x1": px(x1), "y1": px(y1), "x2": px(x2), "y2": px(y2)}
    return tag("line", **ends, stroke="currentColor", stroke_opacity=opacity, **more)


def rect(x: float, y: float, width: float, height: float, *children: Any, **more: Any) -> Markup:
    """A rectangle, px; a negative width or height becomes 0."""
    return tag("rect", *children, x=px(x), y=px(y), width=px(max(width, 0)), height=px(max(height, 0)), **more)


def path(points: Iterable[tuple[float, float]], **more: Any) -> Markup:
    """A line through points, px, without a fill."""
    steps = " ".join(f"{px(x)} {px(y)}" for x, y in points)
    return tag("path", d=f"M{steps}", fill="none", **more)


def marker(shape: int, x: float, y: float, colour: str, *inner: Any, hollow: bool = False, size: float = 6) -> Markup:
    """A point: a circle (0) or a diamond (1), hollow if its figure has a caveat."""
    look = {
        "fill": "var(--ground,transparent)" if hollow else colour, "stroke": colour, "stroke_width": 2.25,
    }  # fmt: skip
    if shape == 0:
        return tag("circle", *inner, cx=px(x), cy=px(y), r=px(size), **look)
    r = size * 1.3
    points = f"M{px(x)} {px(y - r)} {px(x + r)} {px(y)} {px(x)} {px(y + r)} {px(x - r)} {px(y)}z"
    return tag("path", *inner, d=points, **look)


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """A linear scale: a function from a figure to its position, px."""
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round figures between two limits, approximately `about` of them.

    >>> ticks(0, 10, 5)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    raw = (high - low) / max(about, 1)
    if not raw > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def plain(value: float) -> str:
    """Format a tick: 0.25, 2.5, 40.

    >>> plain(40.0), plain(0.25)
    ('40', '0.25')
    """
    return f"{value:.6g}"


def width_of(words: str, size: float = 12.5) -> float:
    """Estimate the width of words, px; no font is available for measuring it."""
    return 0.58 * size * len(words)


def short(words: str, most: int = 26) -> str:
    """Shorten a long name in its middle, because names differ at both ends.

    >>> short("a-very-long-name-of-a-checkpoint.pt", 16)
    'a-very-…point.pt'
    """
    if len(words) <= most:
        return words
    head = (most - 1) // 2
    return f"{words[:head]}…{words[len(words) - (most - 1 - head) :]}"


def px(value: float) -> str:
    """Format a length for SVG with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")
