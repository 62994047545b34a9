"""What a mistyped word was probably meant to be."""

from __future__ import annotations

import difflib
import os
from typing import Iterable, Union

from edgeprune_device.printable import printable

__all__ = ["did_you_mean", "no_such_file"]

_NEAR = 0.6  # difflib's own: one letter wrong in three
_EQUALLY = 0.15  # further from the nearest than that is no guess worth showing
_BEGINS = 0.9  # the beginning of a name: somebody abbreviates


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """For a message: "did you mean fp16?", or "" where nothing that is known is near. Case and dashes do not count."""
    found = {name: _likeness(_bare(word), _bare(name)) for name in sorted(set(known))}
    best = max(found.values(), default=0.0)
    near = [name for name, like in found.items() if like >= max(_NEAR, best - _EQUALLY)]
    near = sorted(near, key=lambda name: -found[name])[:3]
    return f"did you mean {' or '.join(near)}?" if near else ""


def no_such_file(path: Union[str, "os.PathLike[str]"]) -> str:
    """For a message: "bset.pt: no such file; did you mean best.pt?", or which folder there is not."""
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
