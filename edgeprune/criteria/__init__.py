"""Which channels are worth least. A criterion is one file here; its name is the value of `--criterion`.

A criterion is a callable `score(model, channels, samples) -> (atoms,) float64`: what removing that atom costs, on one
scale for the whole network. Within a group the lowest go first; between groups the budget weighs the sums.
`samples` are labelled training pictures (features.Samples), or None; NEEDS_SAMPLES says which criteria want them.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable

from edgeprune_device.errors import InputError


def names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> Callable:
    """The criterion `name`, or a user's own as `module:function`.

    Raises:
        InputError: unknown; the message offers the near names.
    """
    if ":" in name:
        module, _, function = name.partition(":")
        try:
            with _working_folder():
                return getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise InputError(f"criterion {name!r}: {error}") from error
    if name not in names():
        near = difflib.get_close_matches(name, names())
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(f"unknown criterion {name!r}: {hint}there are auto, {', '.join(names())}, or module:function")
    return importlib.import_module(f"{__name__}.{name}").score


@contextlib.contextmanager
def _working_folder():
    """The user's module lies where the command is typed; a console script does not look there by itself."""
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path.remove(os.getcwd())


def needs_samples(criterion: Callable) -> bool:
    return bool(getattr(importlib.import_module(criterion.__module__), "NEEDS_SAMPLES", False))
