"""Importance criteria: which channels are worth least. A criterion is one file here; its name is the value of
`--criterion`.

A criterion is a callable `score(model, channels, samples) -> (atoms,) float64`: the cost of removing each atom, on one
scale for the whole network. Within a group the channels with the lowest scores go first; between groups the budget
weighs the sums. `samples` are labelled training images (`data.samples.Samples`), or None; `NEEDS_SAMPLES = True` marks
the criteria that need them. Files that begin with an underscore are shared by several criteria.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable

import numpy as np
from edgeprune_device.errors import EdgepruneError, InputError


def names() -> list[str]:
    """The names of the criteria in this folder, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(name: str) -> Callable:
    """The criterion `name`, or a user's own as `module:function`. Its result is checked at every call.

    Raises:
        InputError: The name is unknown (the message offers similar names), or the user's module cannot be imported.
    """
    if ":" in name:
        return _own(name)
    if name not in names():
        near = difflib.get_close_matches(name, names())
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(f"unknown criterion {name!r}: {hint}there are auto, {', '.join(names())}, or module:function")
    return _checked(name, importlib.import_module(f"{__name__}.{name}").score)


def resolve(name: str, *, pictures: bool) -> str:
    """The criterion that `name` stands for: `auto` is `energy` where there are images, else `bn_scale`.

    Args:
        name: A name, `module:function`, or `auto`.
        pictures: Whether there are labelled images.

    Raises:
        InputError: The criterion is unknown, or it needs images and there are none.
    """
    if name == "auto":
        return "energy" if pictures else "bn_scale"
    if needs_samples(load(name)) and not pictures:
        raise InputError(f"criterion {name!r} looks at pictures: give --data data.yaml, or take --criterion bn_scale")
    return name


def _own(name: str) -> Callable:
    module, _, function = name.partition(":")
    try:
        with _working_folder():
            criterion = getattr(importlib.import_module(module), function)
    except Exception as error:  # a user's file can raise anything
        raise InputError(f"criterion {name!r}: {_line(error)}") from error
    if not callable(criterion):
        raise InputError(f"criterion {name!r}: not a function (model, channels, samples) -> scores")
    checked = _checked(name, criterion)

    @functools.wraps(criterion)
    def score(model, channels, samples):
        try:
            return checked(model, channels, samples)
        except EdgepruneError:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{place.filename}, line {place.lineno}"
            raise InputError(f"criterion {name!r} failed: {type(error).__name__}: {_line(error)} ({where})") from error

    return score


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _checked(name: str, criterion: Callable) -> Callable:
    """The criterion with its result checked and made (atoms,) float64. A NaN would sort anywhere, unseen."""

    @functools.wraps(criterion)
    def score(model, channels, samples):
        scores = np.asarray(criterion(model, channels, samples))
        wrong = None
        if scores.shape != (channels.atoms,):
            wrong = f"shape {scores.shape} instead of ({channels.atoms},), one score an atom"
        elif scores.dtype.kind not in "fiu":
            wrong = f"{scores.dtype} instead of float"
        elif np.isnan(scores).any() or np.isneginf(scores).any():
            wrong = "NaN or minus infinity among the scores (infinity is allowed: that channel stays)"
        if wrong:
            raise InputError(f"criterion {name!r} returned {wrong}")
        return scores.astype(np.float64)

    return score


@contextlib.contextmanager
def _working_folder():
    """Import from the folder where the command is typed, too; a console script does not look there by itself."""
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path.remove(os.getcwd())


def needs_samples(criterion: Callable) -> bool:
    """Whether a criterion needs labelled images."""
    return bool(getattr(importlib.import_module(criterion.__module__), "NEEDS_SAMPLES", False))
