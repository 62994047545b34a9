"""Clocks: they time a set of ONNX files for a budget in milliseconds (latency.py).

A clock is called with name -> ONNX file and returns name -> milliseconds of one inference. The first file is the uncut
network, which the others are timed against. To add a runtime, add one file to this folder.
"""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """A clock. `description` names the runtime and the machine."""

    description: str

    def __call__(self, files: dict[str, bytes]) -> dict[str, float]: ...
