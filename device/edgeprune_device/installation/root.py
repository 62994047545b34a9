"""The folder that holds the releases, and whether this user may write there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Optional

from edgeprune_device.errors import InputError
from edgeprune_device.installation import restart

__all__ = ["make_folder", "make_root", "problem"]


def make_root(root: Path) -> None:
    """Make the root and its folders; where only root can, and sudo asks for no password, by sudo.

    Args:
        root: The folder.

    Raises:
        InputError: The folder cannot be made or written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o755)
    except PermissionError as error:
        prefix = restart.privileged()
        owner = ["-o", str(os.getuid()), "-g", str(os.getgid())]
        make = [*(prefix or []), "install", "-d", *owner, str(root)]
        if not prefix or subprocess.run(make, stdin=subprocess.DEVNULL).returncode:
            raise InputError(_not_ours(root)) from error
    except OSError as error:
        raise InputError(f"{root}: cannot be made ({str(error.strerror).lower()})") from error
    why = problem(root)
    if why is not None:
        raise InputError(why)
    for name in ("releases", "incoming", "run"):
        make_folder(root / name)


def problem(root: Path) -> Optional[str]:
    """Why no bundle can be installed below `root`, in one line; None where one can. It makes no folder."""
    there = root
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return f"{there}: is not a folder"
    if os.geteuid() == 0 and there == root and there.stat().st_uid != 0:
        # The service of the owner could not change files that root writes there.
        return f"{root}: belongs to user {there.stat().st_uid}: install as that user, not as root"
    if os.access(str(there), os.W_OK | os.X_OK) or (there != root and restart.privileged() is not None):
        return None
    return _not_ours(root)


def _not_ours(root: Path) -> str:
    return f"{root}: this user may not write there: sudo install -d -o $USER {root}, or give another folder"


def make_folder(folder: Path) -> None:
    """Make a folder.

    Raises:
        InputError: The folder cannot be made.
    """
    try:
        folder.mkdir(exist_ok=True, mode=0o755)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({str(error.strerror).lower()})") from error
