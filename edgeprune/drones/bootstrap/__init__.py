"""Scripts for a drone that has no agent yet, sent as text to the drone's own Python.

They import the standard library only, and run on any Python from 3.6 on. The host does not import them; `source` reads
them.
"""

from __future__ import annotations

from pathlib import Path

from edgeprune_device.interpreter import START


def source(name: str) -> str:
    """The text of a script in this folder, e.g. source("probe"). The script ignores modules in the current folder."""
    return START + (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
