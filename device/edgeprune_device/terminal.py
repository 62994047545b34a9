"""The features of an output stream: colour, a line that can be redrawn, characters beyond ASCII, the width.

Host and device use these rules, so that a pipe, a CI log, a serial console and a terminal each get readable output, in
the same way everywhere. The module uses only the standard library.
"""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from typing import IO, Mapping, Optional

__all__ = ["Look", "cells", "clipped", "columns", "foreground", "look"]

_COLUMNS = 80  # if the width is unknown: a pipe, or a serial console, which reports 0
_CODES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "cyan": 36}
#: Terminals whose cursor cannot be moved: an editor's shell, a dumb serial line.
_DUMB = ("", "dumb", "unknown", "emacs")
#: The characters beyond ASCII in this project's own texts, with their replacements.
_ASCII = str.maketrans({"…": "...", "→": "->", "–": "-", "—": "-", "−": "-", "×": "x", "±": "+-", "≥": ">=", "≤": "<=",
                        "µ": "u", "“": '"', "”": '"', "’": "'", "·": "-"})  # fmt: skip


@dataclass(frozen=True)
class Look:
    """The features of a stream.

    Examples: Look(colour=True, live=True, unicode=True) for a modern terminal, Look() for a file.

    Attributes:
        colour: The 8 standard colours, in the user's theme.
        live: The last line may be redrawn.
        unicode: Lines, bars and an ellipsis; otherwise ASCII.
    """

    colour: bool = False
    live: bool = False
    unicode: bool = False

    def style(self, text: str, *names: str) -> str:
        """The text in a style ("bold", "dim", "red", "green", "yellow", "cyan"); unchanged without colour."""
        if not self.colour or not text or not names:
            return text
        return f"\x1b[{';'.join(str(_CODES[name]) for name in names)}m{text}\x1b[0m"

    def text(self, text: str) -> str:
        """Replace characters that cannot be shown with ASCII; only for this project's own texts, not for file names."""
        return text if self.unicode else text.translate(_ASCII)


def look(stream: IO[str], environ: Optional[Mapping[str, str]] = None) -> Look:
    """The features of a stream.

    Colour: NO_COLOR disables it, CLICOLOR_FORCE or FORCE_COLOR force it, CLICOLOR=0 or a dumb terminal disable it,
    other terminals have it. A live line needs a terminal that is neither dumb nor a CI job's. Characters beyond ASCII
    need UTF-8 in stream and locale, and not the kernel's console, whose font has no heavy lines.

    Args:
        stream: The stream to write to.
        environ: The environment; None: that of this process.
    """
    environ = os.environ if environ is None else environ
    terminal, kind = _is_terminal(stream), environ.get("TERM", "")
    moves = terminal and kind not in _DUMB
    return Look(
        colour=_colour(moves, environ),
        live=moves and environ.get("CI", "").lower() in ("", "0", "false"),
        unicode=terminal and kind not in (*_DUMB, "linux") and _is_utf8(stream, environ),
    )


def columns(stream: IO[str]) -> int:
    """The current number of columns of the terminal behind `stream`; it may change at any time."""
    try:
        width = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):
        width = 0
    given = os.environ.get("COLUMNS", "")
    return width or (int(given) if given.isdecimal() and 0 < len(given) < 5 and int(given) else _COLUMNS)


def foreground(stream: IO[str]) -> bool:
    """Whether this job may draw on the terminal; a background job must not draw over the shell's prompt."""
    try:
        return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):  # not this session's terminal, so it has no prompt
        return True


def cells(text: str) -> int:
    """The width of a text without escapes in columns: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def clipped(text: str, width: int, mark: str = "...") -> str:
    """The text in at most `width` columns, ending in `mark` if a part was cut off."""
    if cells(text) <= width:
        return text
    mark = mark[: max(width, 0)]
    kept = ""
    for c in text:
        if cells(kept + c) > width - len(mark):
            break
        kept += c
    return kept + mark


def _colour(moves: bool, environ: Mapping[str, str]) -> bool:
    if environ.get("NO_COLOR"):
        return False
    if any(environ.get(name, "") not in ("", "0") for name in ("CLICOLOR_FORCE", "FORCE_COLOR")):
        return True
    return moves and environ.get("CLICOLOR") != "0" and environ.get("FORCE_COLOR") != "0"


def _is_terminal(stream: IO[str]) -> bool:
    try:
        return stream.isatty()
    except (OSError, ValueError, AttributeError):  # closed or missing (pythonw, a daemon)
        return False


def _is_utf8(stream: IO[str], environ: Mapping[str, str]) -> bool:
    """Whether stream and locale are UTF-8.

    Python turns every C locale into UTF-8 (PEP 538 sets LC_CTYPE, PEP 540), so only the user's settings count.
    """
    if (getattr(stream, "encoding", None) or "").lower().replace("-", "") != "utf8":
        return False
    names = [environ.get(name, "") for name in ("LC_ALL", "LC_CTYPE", "LANG")]
    if names[1] in ("C.UTF-8", "C.utf8", "UTF-8") and names[2] in ("", "C", "POSIX"):
        names[1] = ""  # set by Python
    locale_name = next((name for name in names if name), "")
    return "utf8" in locale_name.lower().replace("-", "")
