"""One short file for each sub-command, and the options that several of them share."""

from __future__ import annotations

import argparse
from importlib import metadata
from pathlib import Path
from typing import Any, Iterable, Optional

from edgeprune_device.errors import InputError
from edgeprune_device.option import Option
from edgeprune_device.options import ALLOW_UNTRUSTED, ROOT

__all__ = ["add", "add_bundle", "add_where", "find_bundle", "host"]

#: Entry points of the host's package, for the part of a command that runs on a host.
HOST = "edgeprune.host"


def add_bundle(parser: argparse.ArgumentParser, text: str) -> None:
    """Add the argument BUNDLE and the option --allow-untrusted, the same for every command that opens a bundle.

    Args:
        parser: The parser.
        text: Help of the argument.
    """
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", type=Path, help=text)
    ALLOW_UNTRUSTED.add(parser)


def add(parser: argparse.ArgumentParser, options: Iterable[Option]) -> None:
    """Add options to a parser, in this order."""
    for option in options:
        option.add(parser)


def add_where(parser: argparse.ArgumentParser) -> None:
    """Add the argument WHERE: this device's releases, or on a host another device's releases."""
    text = f"a folder of this device (default {ROOT}); on a host: user@drone[:/folder]"
    parser.add_argument("where", metavar="WHERE", nargs="?", help=text)


def find_bundle(given: Optional[Path], folder: Path = Path(".")) -> Path:
    """Find the bundle to use: `given`, or the only *.epb in the folder, or else the newest runs/*/*.epb.

    Raises:
        InputError: No bundle was found, or several were found.
    """
    if given is not None:
        return given
    here = sorted(folder.glob("*.epb"))
    if len(here) > 1:
        raise InputError(f"BUNDLE: several in this folder ({', '.join(path.name for path in here)}); pass one of them")
    built = sorted(folder.glob("runs/*/*.epb"), key=lambda path: path.stat().st_mtime)
    if not here and not built:
        raise InputError(
            "BUNDLE: none found in this folder (*.epb, runs/*/*.epb); pass a bundle, or create one with edgeprune build"
        )
    return here[0] if here else built[-1]


def host(name: str) -> Any:
    """Load the module that the host's package registers under this name, for the part of a command that runs on a host.

    Raises:
        InputError: The host's package is not installed here.
    """
    points = metadata.entry_points()
    # Python 3.8 and 3.9 return a plain dict of groups.
    group = points.select(group=HOST) if hasattr(points, "select") else points.get(HOST, ())
    for point in group:
        if point.name == name:
            return point.load()
    raise InputError(
        "edgeprune: the host's package is not installed here; run this command on the host (pip install edgeprune)"
    )
