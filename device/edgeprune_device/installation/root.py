"""The folder that holds the releases, and whether this user may write there."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Optional

from edgeprune_device import files
from edgeprune_device.errors import InputError, reason
from edgeprune_device.installation import restart

__all__ = ["make_folder", "make_root", "problem"]


def make_root(root: Path) -> None:
    """Create the root and its folders, with sudo if only root can and sudo needs no password.

    Args:
        root: The folder.

    Raises:
        InputError: The folder cannot be created or written.
    """
    try:
        files.make_folder(root)
    except PermissionError as error:
        prefix = restart.privileged()
        owner = ["-o", str(os.getuid()), "-g", str(os.getgid())]
        make = [*(prefix or []), "install", "-d", *owner, str(root)]
        if not prefix or subprocess.run(make, stdin=subprocess.DEVNULL).returncode:
            raise InputError(_not_ours(root)) from error
    except OSError as error:
        raise InputError(f"{root}: cannot be created ({reason(error)})") from error
    why = problem(root)
    if why is not None:
        raise InputError(why)
    for name in ("releases", "incoming", "run"):
        make_folder(root / name)


def problem(root: Path) -> Optional[str]:
    """Why no bundle can be installed below `root`, in one line; None if nothing prevents it. Creates no folder."""
    there = root
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return f"{there}: not a folder"
    if os.geteuid() == 0 and there == root and there.stat().st_uid != 0:
        # The owner's service could not change files that root writes there.
        return f"{root}: belongs to user {there.stat().st_uid}; install as that user, not as root"
    if os.access(str(there), os.W_OK | os.X_OK) or (there != root and restart.privileged() is not None):
        return None
    return _not_ours(root)


def _not_ours(root: Path) -> str:
    remedy = f"run sudo install -d -o $USER {shlex.quote(str(root))}, or give another folder"
    return f"{root}: this user may not write in this folder; {remedy}"


def make_folder(folder: Path) -> None:
    """Create a folder.

    Raises:
        InputError: The folder cannot be created.
    """
    try:
        folder.mkdir(exist_ok=True, mode=0o755)
    except OSError as error:
        raise InputError(f"{folder}: cannot be created ({reason(error)})") from error
