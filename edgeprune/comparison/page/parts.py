"""Elements shared by several sections: scrolling tables, folded content, legends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeprune.comparison.page.html import Markup, join, tag

#: Style classes of a change.
SENSES = {"better": "good", "worse": "bad", "same": "quiet"}


def table(label: str, head: Sequence[Any], rows: Sequence[Markup], *, class_: str | None = None) -> Markup:
    """Render a table with column names; on a narrow screen it scrolls in its own region, also by keyboard."""
    top = tag("tr", [words if isinstance(words, Markup) else tag("th", words, scope="col") for words in head])
    inner = tag("table", tag("thead", top), tag("tbody", list(rows)), class_=class_)
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=f"{label} (table)")


def left(words: str) -> Markup:
    """The heading of a column of words, aligned to the left."""
    return tag("th", words, scope="col", class_="words")


def row(name: Any, *cells: Any, class_: str | None = None) -> Markup:
    """Render a row with its name in the first cell; a cell that is not a <td> becomes one."""
    made = [cell if isinstance(cell, Markup) and cell.startswith("<td") else tag("td", cell) for cell in cells]
    return tag("tr", tag("th", name, scope="row"), made, class_=class_)


def folded(summary: Any, *children: Any, opened: bool = False) -> Markup:
    """Render content that opens below its summary."""
    return tag("details", tag("summary", summary), tag("div", *children, class_="folded"), open=opened)


def legend(entries: Sequence[tuple[Markup, str]]) -> Markup:
    """Render signs with their meanings."""
    return tag("ul", [tag("li", sign, " ", words) for sign, words in entries], class_="legend")


def swatch(colour: str, *, hollow: bool = False) -> Markup:
    """Render a small square of a colour, filled or hollow."""
    inner = tag("rect", x=1.5, y=1.5, width=11, height=11, rx=2, fill="none" if hollow else colour, stroke=colour,
                stroke_width=1.5)  # fmt: skip
    return tag("svg", inner, width=14, height=14, aria_hidden="true")


def quiet(*words: Any) -> Markup:
    """Render a paragraph in the colour of secondary text."""
    return tag("p", join(*words), class_="quiet")
