"""Data sets that were converted from another format, named by the hash of their source.

~/.cache/edgeprune/data/NAME-KEY/     $XDG_CACHE_HOME
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from edgeprune_device.errors import InputError, reason
from edgeprune_device.files import make_folder

from edgeprune import cache

__all__ = ["made"]


def made(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder of this name and key. It appears in one step, after it is complete.

    Args:
        name: The readable part of the folder's name.
        key: The hash of the source, hexadecimal.
        make: Fills an empty folder, if no folder has this name and key yet.

    Raises:
        InputError: The cache cannot be written.
    """
    base = cache.folder("data")
    place = base / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[:60]}-{key[:16]}"
    if place.is_dir():
        return place
    try:
        make_folder(base)
        work = Path(tempfile.mkdtemp(prefix=".", dir=base))
        try:
            whole = work / "data"
            whole.mkdir()
            make(whole)
            with contextlib.suppress(FileExistsError):  # another process has created it first
                os.rename(whole, place)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        if place.is_dir():
            return place
        raise InputError(f"{base}: cannot be written ({reason(error)}); free space, or set XDG_CACHE_HOME") from error
    return place
