"""One short file for each sub-command, and the options that several of them share."""

from __future__ import annotations

import argparse
from importlib import metadata
from pathlib import Path
from typing import Any, Optional

from edgeprune_device.errors import InputError

__all__ = [
    "add_bundle",
    "add_cuda",
    "add_root",
    "add_where",
    "find_bundle",
    "host",
    "positive_float",
    "positive_int",
]

#: Entry points of the host's package, for the part of a command that runs on a host.
HOST = "edgeprune.host"


def add_bundle(parser: argparse.ArgumentParser, text: str) -> None:
    """Add the argument BUNDLE and the option --allow-untrusted, the same for every command that opens a bundle.

    Args:
        parser: The parser.
        text: Help of the argument.
    """
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", type=Path, help=text)
    parser.add_argument(
        "--allow-untrusted",
        action="store_true",
        help="accept a bundle that is intact but signed by a key that is not trusted here",
    )


def add_root(parser: argparse.ArgumentParser) -> None:
    """Add the option --root, the same for every command that works on this device's releases."""
    from edgeprune_device.releases import DEFAULT_ROOT

    parser.add_argument(
        "--root", type=Path, default=DEFAULT_ROOT, metavar="FOLDER", help=f"of the releases (default {DEFAULT_ROOT})"
    )


def add_where(parser: argparse.ArgumentParser) -> None:
    """Add the argument WHERE: this device's releases, or on a host those of another device."""
    from edgeprune_device.releases import DEFAULT_ROOT

    text = f"a folder of this device (default {DEFAULT_ROOT}); on a host: user@drone[:/folder]"
    parser.add_argument("where", metavar="WHERE", nargs="?", help=text)


def add_cuda(parser: argparse.ArgumentParser) -> None:
    """Add the options --cuda and --workspace, the same for every command that builds engines."""
    from edgeprune_device import cuda

    parser.add_argument(
        "--cuda",
        default="auto",
        choices=("auto", *cuda.names()),
        help="what handles the GPU's memory; default: the first that works",
    )
    parser.add_argument(
        "--workspace",
        metavar="MB",
        type=positive_int,
        help="scratch memory of a layer while a TensorRT engine is built; default: by what is free",
    )


def find_bundle(given: Optional[Path], folder: Path = Path(".")) -> Path:
    """Find the bundle to use: `given`, or the only *.epb in the folder, or else the newest runs/*/*.epb.

    Raises:
        InputError: There is none, or there are several.
    """
    if given is not None:
        return given
    here = sorted(folder.glob("*.epb"))
    if len(here) > 1:
        raise InputError(f"several bundles here ({', '.join(path.name for path in here)}): say which")
    built = sorted(folder.glob("runs/*/*.epb"), key=lambda path: path.stat().st_mtime)
    if not here and not built:
        raise InputError("no bundle given and none found (*.epb, runs/*/*.epb): give one, or make one: edgeprune build")
    return here[0] if here else built[-1]


def host(name: str) -> Any:
    """The module that the host's package registers under this name, for the part of a command that runs on a host.

    Raises:
        InputError: That package is not installed here.
    """
    points = metadata.entry_points()
    # Python 3.8 and 3.9 return a plain dict of groups.
    group = points.select(group=HOST) if hasattr(points, "select") else points.get(HOST, ())
    for point in group:
        if point.name == name:
            return point.load()
    raise InputError("this works on the host only: pip install edgeprune there")


def positive_float(text: str) -> float:
    """Parse a finite number above 0, for argparse."""
    return _positive(text, float)


def positive_int(text: str) -> int:
    """Parse a whole number above 0, for argparse."""
    return _positive(text, int)


def _positive(text, kind):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"must be a {'whole ' if kind is int else ''}number above 0, not {text!r}")
    return value
