"""Figures and tables as text: the widths and the numbers that every table of edgeprune shares.

Knows nothing of what the figures mean. A figure that was not measured (None) is NOT_MEASURED in every table.
"""

from __future__ import annotations

from collections.abc import Sequence

NOT_MEASURED = "-"


def aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    """The first cell to the left, the figures to the right."""
    return "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equally many cells -> lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [aligned(row, widths).rstrip() for row in rows]


def number(value: float | None, digits: int = 2, scale: float = 1.0) -> str:
    """number(3_010_000, 2, 1e6) -> "3.01"; None -> NOT_MEASURED."""
    return NOT_MEASURED if value is None else f"{value / scale:.{digits}f}"
