"""Figures and tables as text: the widths and number formats that all tables of edgeprune share.

The module knows nothing of the meaning of a figure. A figure that was not measured (None) is NOT_MEASURED in every
table.
"""

from __future__ import annotations

from collections.abc import Sequence

NOT_MEASURED = "-"


def aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    """Join cells to a line: the first cell aligned to the left, the others to the right."""
    return "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Turn rows of equally many cells into lines; each column is as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [aligned(row, widths).rstrip() for row in rows]


def number(value: float | None, digits: int = 2, scale: float = 1.0) -> str:
    """Format a number, as in `number(3_010_000, 2, 1e6) == "3.01"`; None becomes NOT_MEASURED."""
    return NOT_MEASURED if value is None else f"{value / scale:.{digits}f}"


def clock(seconds: float) -> str:
    """Format a duration that has passed: 0:07, 3:12, 1:02:33."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def about(seconds: float) -> str:
    """Format an estimated duration, no finer than it is known: 25 s, 1 min 20 s, 4 min, 1 h 20 min, 2 d 3 h."""
    steps = ((55, 5), (115, 10), (3300, 60), (6 * 3600, 300), (86400, 1800), (float("inf"), 3600))
    step = next(step for below, step in steps if seconds <= below)
    whole = max(round(seconds / step), 1) * step
    parts = []
    for name, unit in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, whole = divmod(whole, unit)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts)
