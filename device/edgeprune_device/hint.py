"""Suggestions for mistyped words."""

from __future__ import annotations

import difflib
import os
from typing import Iterable, Union

from edgeprune_device.printable import printable

__all__ = ["did_you_mean", "no_such_file"]

_NEAR = 0.6  # difflib's own: one letter wrong in three
_EQUALLY = 0.15  # names that are less near than the nearest by more than this are not shown
_BEGINS = 0.9  # the beginning of a name: an abbreviation


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion for a message: "did you mean fp16?", or "" where no known word is near.

    Case and dashes do not count.

    Args:
        word: The mistyped word.
        known: The known words.
    """
    found = {name: _likeness(_bare(word), _bare(name)) for name in sorted(set(known))}
    best = max(found.values(), default=0.0)
    near = [name for name, like in found.items() if like >= max(_NEAR, best - _EQUALLY)]
    near = sorted(near, key=lambda name: -found[name])[:3]
    return f"did you mean {' or '.join(near)}?" if near else ""


def no_such_file(path: Union[str, "os.PathLike[str]"]) -> str:
    """A message with a suggestion: "bset.pt: no such file; did you mean best.pt?", or the folder that is missing."""
    folder, name = os.path.split(os.fspath(path))
    try:
        near = did_you_mean(name, os.listdir(folder or "."))
    except FileNotFoundError:
        return f"{path}: no such file; there is no folder {folder}"
    except OSError as error:
        return f"{path}: no such file; {folder} cannot be looked into ({str(error.strerror).lower()})"
    return f"{path}: no such file{'; ' if near else ''}{printable(near)}"


def _likeness(a: str, b: str) -> float:
    # The matcher is not symmetric.
    begins = len(a) >= 3 and b.startswith(a)
    return max(_BEGINS if begins else 0.0, *(difflib.SequenceMatcher(None, *pair).ratio() for pair in ((a, b), (b, a))))


def _bare(name: str) -> str:
    return name.lower().lstrip("-").replace("_", "-")
