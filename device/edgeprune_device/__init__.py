"""The drone's half of edgeprune: verify a bundle, run it, measure it, report back.

Imports nothing by itself; take what you need from the module of that noun, e.g.
`from edgeprune_device.bundle import Bundle`.
"""

from __future__ import annotations


def version() -> str:
    """The installed version of this distribution, e.g. "0.1.0" ("unknown" when run from a folder, uninstalled)."""
    from importlib import metadata

    try:
        return metadata.version("edgeprune-device")
    except metadata.PackageNotFoundError:
        return "unknown"
