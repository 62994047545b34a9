"""Figures as text: the number formats that all tables of edgeprune share.

The module knows nothing about the meaning of a figure. A figure that was not measured (None) is NOT_MEASURED in every
table.
"""

from __future__ import annotations

NOT_MEASURED = "-"


def number(value: float | None, digits: int = 2, scale: float = 1.0) -> str:
    """Format a number, as in `number(3_010_000, 2, 1e6) == "3.01"`; None becomes NOT_MEASURED."""
    return NOT_MEASURED if value is None else f"{value / scale:.{digits}f}"


def clock(seconds: float) -> str:
    """Format an elapsed duration: 0:07, 3:12, 1:02:33."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def about(seconds: float) -> str:
    """Format an estimated duration, no finer than its accuracy: 25 s, 1 min 20 s, 4 min, 1 h 20 min, 2 d 3 h."""
    steps = ((55, 5), (115, 10), (3300, 60), (6 * 3600, 300), (86400, 1800), (float("inf"), 3600))
    step = next(step for below, step in steps if seconds <= below)
    whole = max(round(seconds / step), 1) * step
    parts = []
    for name, unit in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, whole = divmod(whole, unit)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts)
