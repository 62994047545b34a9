"""Where the host keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def folder(name: str) -> Path:
    """~/.cache/edgeprune/NAME, or below $XDG_CACHE_HOME; it need not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeprune" / name
