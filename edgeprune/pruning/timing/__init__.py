"""Clocks: what a latency-aware budget (latency.py) asks for the times of a set of ONNX files.

A clock is called with name -> ONNX file and returns name -> milliseconds of one inference; the first is the uncut
network, which the others are timed against. `description` says where and how. Adding a runtime is adding one file here.
"""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    description: str

    def __call__(self, files: dict[str, bytes]) -> dict[str, float]: ...
