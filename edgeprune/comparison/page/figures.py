"""Formats figures, and the change between two of them; a missing figure is "not measured"."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NOT_MEASURED = "not measured"
MINUS = "−"


def number(value: Any) -> float | None:
    """Return a finite number unchanged; None for null, NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def show(value: Any, unit: str) -> str:
    """Format a figure with its unit: "bytes", "count", "ms", "fps", "map", "mj", "px" or "int".

    >>> show(3_011_043, "count"), show(12_054_321, "bytes"), show(0.2493, "map"), show(None, "ms")
    ('3.01 M', '12.1 MB', '0.249', 'not measured')
    """
    if unit == "px" and isinstance(value, (list, tuple)):  # the sides of an input
        return " x ".join(f"{side:.0f}" for side in value)
    value = number(value)
    return NOT_MEASURED if value is None else _UNITS[unit](value)


def _scaled(value: float, suffix: str = "") -> str:
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{_three(value / size)} {name}{suffix}"
    return f"{value:.0f} {suffix}".rstrip()


def _three(value: float) -> str:
    """Format with three significant digits, and with all digits of the integer part."""
    magnitude = abs(value)
    digits = 0 if magnitude >= 99.95 else 1 if magnitude >= 9.995 else 2 if magnitude >= 0.9995 else 3
    return f"{value:.{digits}f}"


_UNITS: dict[str, Callable[[float], str]] = {
    "bytes": lambda v: _scaled(v, "B"),
    "count": _scaled,
    "ms": lambda v: f"{_three(v)} ms",
    "fps": lambda v: f"{_three(v)} FPS",
    "map": lambda v: f"{v:.3f}",
    "mj": lambda v: f"{_three(v)} mJ",
    "int": lambda v: f"{v:,.0f}",
    "px": lambda v: f"{v:,.0f}",
}


@dataclass(frozen=True)
class FigureChange:
    """The change of a figure.

    Attributes:
        text: the change in words.
        sense: "better", "worse" or "same".
    """

    text: str
    sense: str


def signed(value: float, digits: int = 3) -> str:
    """Format a difference with its sign: +0.004, −0.012, ±0.000."""
    text = f"{abs(value):.{digits}f}"
    return f"±{text}" if float(text) == 0 else f"{'+' if value > 0 else MINUS}{text}"


def share(before: Any, after: Any, less: str, more: str, *, good: str = "less") -> FigureChange | None:
    """The change of a figure in percent; None if one of the two was not measured.

    >>> share(200, 50, "smaller", "larger")
    FigureChange(text='75 % smaller', sense='better')

    Args:
        before: the figure of the reference.
        after: the figure of the model.
        less: word for a decrease.
        more: word for an increase.
        good: the better direction, "less" or "more".
    """
    before, after = number(before), number(after)
    if before is None or after is None or before <= 0:
        return None
    percent = 100 * (after / before - 1)
    amount = f"{abs(percent):.0f}" if abs(percent) >= 9.95 else f"{abs(percent):.1f}"
    if float(amount) == 0:
        return FigureChange("unchanged", "same")
    fewer = percent < 0
    return FigureChange(f"{amount} % {less if fewer else more}", "better" if fewer == (good == "less") else "worse")


def accuracy(before: Any, after: Any) -> FigureChange | None:
    """The change of an average precision, as a difference; 0.01 is one point."""
    before, after = number(before), number(after)
    if before is None or after is None:
        return None
    text = signed(after - before)
    return FigureChange(text, "same" if text[0] == "±" else "better" if after > before else "worse")


def times(speedup: Any) -> FigureChange | None:
    """The change of a latency as a factor: 2.00× as fast."""
    speedup = number(speedup)
    if speedup is None or speedup <= 0:
        return None
    if f"{speedup:.2f}" == "1.00":
        return FigureChange("the same", "same")
    return FigureChange(f"{speedup:.2f}× as fast", "better" if speedup > 1 else "worse")
