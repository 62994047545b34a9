"""The modules of a folder that is extended by adding a file: runtimes, sources, probes, criteria, clocks."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Iterable, List

__all__ = ["load", "names"]


def names(path: Iterable[str]) -> List[str]:
    """The names of a folder's modules in alphabetical order, without helpers, whose names begin with "_".

    Args:
        path: The package's folders (`__path__` in its `__init__`).
    """
    modules = (module.name for module in pkgutil.iter_modules(list(path)))
    return sorted(name for name in modules if not name.startswith("_"))


def load(package: str, name: str) -> ModuleType:
    """Import the module with one of these names.

    Args:
        package: The package's name.
        name: One of `names`; a dash stands for an underscore.

    Raises:
        ImportError: The module, or one that it imports, is missing.
    """
    return importlib.import_module(f"{package}.{name.replace('-', '_')}")
