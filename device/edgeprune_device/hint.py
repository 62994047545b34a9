"""Suggestions for mistyped words."""

from __future__ import annotations

import difflib
import os
import re
from typing import Iterable, Sequence, Union

from edgeprune_device.errors import reason
from edgeprune_device.printable import printable

__all__ = ["did_you_mean", "no_such_file", "unknown"]

_NEAR = 0.6  # difflib's default: one wrong letter in three
_EQUALLY = 0.15  # names that are less similar than the best one by more than this are not shown
_URL = re.compile("([A-Za-z][A-Za-z0-9+.-]+):/+")
_BEGINS = 0.9  # the beginning of a name: an abbreviation


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion for a message: "did you mean fp16?", or "" if no known word is similar.

    Ignores case and dashes.

    Args:
        word: The mistyped word.
        known: The known words.
    """
    likeness = {name: _likeness(_bare(word), _bare(name)) for name in sorted(set(known))}
    best = max(likeness.values(), default=0.0)
    near = [name for name, like in likeness.items() if like >= max(_NEAR, best - _EQUALLY)]
    near = sorted(near, key=lambda name: -likeness[name])[:3]
    return f"did you mean {' or '.join(near)}?" if near else ""


def unknown(what: str, word: str, known: Sequence[str]) -> str:
    """A message: "--precision: unknown precision (found 'fp61', expected fp32 or fp16); did you mean fp16?".

    Args:
        what: Start of the message, e.g. "--precision: unknown precision".
        word: The unknown word.
        known: The known words.
    """
    near = did_you_mean(word, known)
    expected = " or ".join(filter(None, [", ".join(known[:-1]), known[-1]]))
    return f"{what} (found {word!r}, expected {expected}){'; ' if near else ''}{near}"


def no_such_file(path: Union[str, "os.PathLike[str]"], inside: Sequence[str] = ()) -> str:
    """A message with a suggestion: "bset.pt: no such file; did you mean best.pt?", or the name of a missing folder.

    Args:
        path: The path, which is not a file.
        inside: Files of the expected kind that a folder may contain, the most likely first.
    """
    text = os.fspath(path)
    url = _URL.match(text)
    if url:  # pathlib merges two slashes into one
        return (
            f"{printable(url[1])}://{printable(text[url.end() :])}: a URL; download the file first, and give its path"
        )
    if os.path.isdir(text):
        held = next((name for name in inside if os.path.isfile(os.path.join(text, name))), None)
        return f"{path}: a folder, not a file{f'; give {os.path.join(text, held)}' if held else ''}"
    if os.path.exists(text):
        return f"{path}: not a regular file (found a pipe, a socket or a device); give the file itself"
    folder, name = os.path.split(text)
    try:
        near = did_you_mean(name, os.listdir(folder or "."))
    except FileNotFoundError:
        return f"{path}: no such file; the folder {folder} does not exist"
    except OSError as error:
        return f"{path}: no such file; {folder} cannot be read ({reason(error)})"
    return f"{path}: no such file{'; ' if near else ''}{printable(near)}"


def _likeness(a: str, b: str) -> float:
    # The matcher is not symmetric.
    begins = len(a) >= 3 and b.startswith(a)
    return max(_BEGINS if begins else 0.0, *(difflib.SequenceMatcher(None, *pair).ratio() for pair in ((a, b), (b, a))))


def _bare(name: str) -> str:
    return name.lower().lstrip("-").replace("_", "-")
