"""Importance criteria, which score channels. A criterion is one file here; its name is the value of the option
`criterion`.

A file defines `score(model, channels, samples) -> (atoms,) float64`: the cost of removing each atom, on one scale for
the whole network. Within a group the channels with the lowest scores are removed first; between groups the budget
weighs the sums. `samples` are labelled training images (`data.samples.Samples`), or None; `NEEDS_SAMPLES = True` marks
criteria that need them. A criterion that takes long has a fourth parameter, `progress`, which it calls with the
fraction done and a line of text. Files that begin with an underscore are shared by several criteria.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from edgeprune_device import plugins
from edgeprune_device.errors import EdgepruneError, InputError
from edgeprune_device.hint import unknown
from edgeprune_device.option import named
from edgeprune_device.progress import Progress, silent
from torch import nn

from edgeprune.data.samples import Samples
from edgeprune.pruning.channels import Channels
from edgeprune.pruning.layers import Floats


class Criterion(Protocol):
    """Scores the channels of a network."""

    __module__: str

    def __call__(
        self, model: nn.Module, channels: Channels, samples: Samples | None, progress: Progress = silent
    ) -> Floats:
        """Return the (atoms,) cost of removing each atom, from labelled images or None."""
        ...


def names() -> list[str]:
    """The names of the criteria in this folder, sorted."""
    return plugins.names(__path__)


def load(name: str) -> Criterion:
    """The criterion `name`, or a user's own as `module:function`. Its result is checked at every call.

    Raises:
        InputError: The name is unknown (the message offers similar names), or the user's module cannot be imported.
    """
    if ":" in name:
        return _own(name)
    if name not in names():
        known = ["auto", *names(), "module:function"]
        raise InputError(unknown(f"{named('criterion')}: unknown criterion", name, known))
    return _checked(name, plugins.load(__name__, name).score)


def resolve(name: str, *, pictures: bool) -> str:
    """The criterion that `name` stands for: `auto` is `energy` with images, else `bn_scale`.

    Args:
        name: A name, `module:function`, or `auto`.
        pictures: Whether labelled images are given.

    Raises:
        InputError: The criterion is unknown, or it needs images and none are given.
    """
    if name == "auto":
        return "energy" if pictures else "bn_scale"
    if needs_samples(load(name)) and not pictures:
        data, other = named("data", "data.yaml"), named("criterion", "bn_scale")
        raise InputError(f"criterion {name!r}: needs images; give {data}, or use {other}")
    return name


def _own(name: str) -> Criterion:
    module, _, function = name.partition(":")
    try:
        with _working_folder():
            criterion = getattr(importlib.import_module(module), function)
    except Exception as error:  # a user's file can raise anything
        raise InputError(f"criterion {name!r}: {_line(error)}") from error
    if not callable(criterion):
        raise InputError(f"criterion {name!r}: not a function (expected (model, channels, samples) -> scores)")
    checked = _checked(name, criterion)

    @functools.wraps(criterion)
    def score(model: nn.Module, channels: Channels, samples: Samples | None, progress: Progress = silent) -> Floats:
        try:
            return checked(model, channels, samples, progress)
        except EdgepruneError:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{place.filename}, line {place.lineno}"
            raise InputError(
                f"criterion {name!r}: failed with {type(error).__name__}: {_line(error)} ({where})"
            ) from error

    return score


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _checked(name: str, criterion: Callable[..., Any]) -> Criterion:
    """The criterion with a check of its result, as (atoms,) float64. A NaN would be sorted anywhere unnoticed."""

    @functools.wraps(criterion)
    def score(model: nn.Module, channels: Channels, samples: Samples | None, progress: Progress = silent) -> Floats:
        shown = {"progress": progress} if _shows_progress(criterion) else {}
        scores = np.asarray(criterion(model, channels, samples, **shown))
        wrong = None
        if scores.shape != (channels.atoms,):
            wrong = f"shape {scores.shape} instead of ({channels.atoms},), one score per atom"
        elif scores.dtype.kind not in "fiu":
            wrong = f"{scores.dtype} instead of float"
        elif np.isnan(scores).any() or np.isneginf(scores).any():
            wrong = "NaN or minus infinity among the scores (infinity is allowed and keeps the channel)"
        if wrong:
            raise InputError(f"criterion {name!r}: returned {wrong}")
        return scores.astype(np.float64)

    return score


def _shows_progress(criterion: Callable[..., Any]) -> bool:
    try:
        return "progress" in inspect.signature(criterion).parameters
    except (TypeError, ValueError):  # a function in C
        return False


@contextlib.contextmanager
def _working_folder() -> Iterator[None]:
    """Also import from the working folder, which a console script does not search by default."""
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path.remove(os.getcwd())


def needs_samples(criterion: Criterion) -> bool:
    """Whether a criterion needs labelled images."""
    return bool(getattr(importlib.import_module(criterion.__module__), "NEEDS_SAMPLES", False))
