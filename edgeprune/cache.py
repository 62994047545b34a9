"""The folder in which the host keeps files that it can create again."""

from __future__ import annotations

import os
from pathlib import Path


def folder(name: str) -> Path:
    """The folder ~/.cache/edgeprune/NAME, or the same below $XDG_CACHE_HOME; it is not created here."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeprune" / name
