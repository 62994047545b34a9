"""Clocks, which time a set of ONNX files for a budget in milliseconds (latency.py).

A clock is called with name -> ONNX file and returns name -> milliseconds per inference. The first file is the unpruned
network, the reference for the others. To add a runtime, add one file with `clock() -> Clock` to this folder; the name
of the file is the name of the clock.
"""

from __future__ import annotations

from typing import Protocol

from edgeprune_device import plugins

#: The default clock.
DEFAULT = "ort"


class Clock(Protocol):
    """Times ONNX files.

    Attributes:
        description: The runtime and the machine, as text.
    """

    @property
    def description(self) -> str: ...

    def __call__(self, files: dict[str, bytes]) -> dict[str, float]: ...


def clocks() -> list[str]:
    """The names of the clocks in this folder, in alphabetical order."""
    return plugins.names(__path__)


def load(name: str) -> Clock:
    """The clock with this name.

    Args:
        name: One of `clocks()`.
    """
    clock: Clock = plugins.load(__name__, name).clock()
    return clock
