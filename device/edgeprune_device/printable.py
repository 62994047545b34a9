"""Makes foreign text safe for terminals and reports."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """Replace every character that would move the cursor, change a colour, or end the line by "?".

    The length does not change.
    """
    return "".join(c if c.isprintable() else "?" for c in text)
