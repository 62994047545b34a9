"""Removes old releases, their engines, and abandoned uploads."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import suppress
from pathlib import Path

from edgeprune_device.installation.options import InstallOptions, SayStep
from edgeprune_device.releases import Releases

__all__ = ["tidy", "tidy_engines"]

_STALE_S = 7 * 86400  # an upload is abandoned if nothing was added for this time


# --- tidy ------------------------------------------------------------------------------------------------------------
def tidy(releases: Releases, source: Path, options: InstallOptions, say: SayStep) -> None:
    """Remove old releases and their engines, the uploaded pieces of `source`, and abandoned uploads.

    An upload is abandoned if nothing was added to it for seven days.

    Args:
        releases: The releases.
        source: The bundle or folder that was installed.
        options: How to install.
        say: Receives each step.
    """
    gone = releases.tidy(options.keep)
    if gone:
        say("tidy", f"removed releases: {', '.join(gone)}")
    _tidy_incoming(releases, source)
    tidy_engines(releases)


def _tidy_incoming(releases: Releases, source: Path) -> None:
    """Remove the uploaded pieces of the installed bundle, and abandoned uploads."""
    incoming = releases.root / "incoming"
    for folder in incoming.iterdir():
        with suppress(OSError):
            stale = time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir())) > _STALE_S
            if stale or (source.is_dir() and folder.samefile(source)):
                shutil.rmtree(str(folder), ignore_errors=True)


def tidy_engines(releases: Releases) -> None:
    """Remove engines of models that no release has any more, only in the folder of these releases."""
    folder = releases.root / "engines"
    kept = set()
    for release in releases.all():
        path = releases.folder(release) / "manifest.json"
        try:
            kept |= {entry["sha256"] for entry in json.loads(path.read_bytes())["payloads"]}
        except (OSError, ValueError, KeyError, TypeError):
            return  # the payloads of this release are unknown, so nothing is removed
    for path in folder.glob("*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(path.read_bytes())["engine"]["onnx_sha256"] not in kept:
                path.unlink()
                path.with_suffix(".plan").unlink()
