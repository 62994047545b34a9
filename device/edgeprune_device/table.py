"""A table as text: cells in columns."""

from __future__ import annotations

from itertools import zip_longest
from typing import List, Sequence

__all__ = ["aligned", "rows"]


def aligned(cells: Sequence[str], widths: Sequence[int], right: Sequence[int] = ()) -> str:
    """Join the cells of a row to a line.

    Args:
        cells: The cells.
        widths: The width of each column, characters.
        right: The right-aligned columns; the others are left-aligned.
    """
    padded = (
        cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in enumerate(zip(cells, widths))
    )
    return "  ".join(padded).rstrip()


def rows(cells: Sequence[Sequence[str]], *, figures: bool = False) -> List[str]:
    """Turn rows of cells into lines; each column is as wide as its widest cell.

    Args:
        cells: The rows. A row may have fewer cells than the others.
        figures: Whether all columns except the first contain figures, which are right-aligned.
    """
    widths = [max(map(len, column)) for column in zip_longest(*cells, fillvalue="")]
    return [aligned(row, widths, range(1, len(row)) if figures else ()) for row in cells]
