"""A stranger's text, as a terminal may show it and a report may hold it."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """The same length, with "?" for what would move the cursor, change a colour, or end the line."""
    return "".join(c if c.isprintable() else "?" for c in text)
