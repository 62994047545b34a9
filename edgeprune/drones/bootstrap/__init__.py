"""What runs on a drone before the agent is there, sent as text to the drone's own Python: the standard library only, on
any Python from 3.6 on. Nothing here is imported on the host; `source` reads it."""

from __future__ import annotations

from pathlib import Path

from edgeprune_device.interpreter import START


def source(name: str) -> str:
    """The text of a file beside this one, e.g. source("probe"). It ignores modules in the current folder."""
    return START + (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
