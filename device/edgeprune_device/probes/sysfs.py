"""Reads files that the kernel generates. No function raises: a missing or unexpected value is None.

A sensor that is off answers EAGAIN, a driver can disappear between two reads, and boards of other makers can have other
content under the same name. `root` is "/" on a drone; tests, and containers that mount the host's /sys elsewhere, use
another folder.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import List, Optional, Tuple

__all__ = ["children", "clean", "hwmons", "line", "number", "sysroot", "text"]

_LONGEST_BYTES = 1 << 16  # far larger than any of these files; a device node in their place would be endless
_NUMBER = re.compile(r"-?[0-9]{1,18}")


def sysroot() -> Path:
    """The folder of the board's /sys, /proc and /etc: $EDGEPRUNE_SYSROOT, or /."""
    return Path(os.environ.get("EDGEPRUNE_SYSROOT") or "/")


def text(path: Path) -> Optional[str]:
    """The content, without the NUL or newline at its end; None if it cannot be read."""
    # Path.read_text is not used, because Python's buffered reader turns EAGAIN into None and then fails on it.
    # O_NONBLOCK, because opening a pipe would wait for ever.
    try:
        descriptor = os.open(str(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    content = b""
    try:
        while len(content) < _LONGEST_BYTES:
            part = os.read(descriptor, _LONGEST_BYTES - len(content))
            if not part:
                break
            content += part
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return content.decode("utf-8", "replace").strip("\0 \t\r\n")


def line(path: Path) -> Optional[str]:
    """The content if it is one printable, non-empty line of at most 200 characters, else None."""
    content = text(path)
    return content if content and len(content) <= 200 and content.isprintable() else None


def number(path: Path, lowest: int, highest: int) -> Optional[int]:
    """The content if it is a whole number from `lowest` to `highest`, else None.

    Outside these limits the sensor is off or broken.
    """
    content = text(path)
    if content is None or _NUMBER.fullmatch(content) is None:
        return None
    value = int(content)
    return value if lowest <= value <= highest else None


def children(folder: Path, prefix: str = "") -> List[Path]:
    """The entries of `folder` that begin with `prefix`; empty without the folder.

    The order is natural: thermal_zone2 before thermal_zone10.
    """
    try:
        names = [name for name in os.listdir(str(folder)) if name.startswith(prefix)]
    except OSError:
        return []
    return [folder / name for name in sorted(names, key=_natural)]


def hwmons(root: Path) -> List[Tuple[str, Path]]:
    """[(name, folder)] of every hwmon device, each once.

    The order does not depend on the numbers of hwmonN, which change with the kernel and from boot to boot.
    """
    places = children(root / "sys/class/hwmon", "hwmon")
    for device in children(root / "sys/bus/i2c/devices"):
        places += children(device / "hwmon", "hwmon")
    real = {os.path.realpath(str(place)): place for place in places}
    named = [(line(place / "name"), place) for _, place in sorted(real.items())]
    return [(name, place) for name, place in named if name]


def clean(name: str) -> str:
    """A name for a channel: text from a device tree, reduced to letters, digits and . _ + @ # -."""
    return re.sub(r"[^A-Za-z0-9.+@#-]+", "_", name).strip("_.+@#-")[:48] or "unnamed"


def _natural(name: str) -> List[Tuple[int, str]]:
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part.isdigit() and part.isascii() else (-1, part) for part in parts]
