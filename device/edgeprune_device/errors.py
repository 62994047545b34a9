"""The one error tree, shared by host and device.

A message is one line: what is wrong, where, and what to do. The command line prints it and exits with `exit_code`;
no traceback reaches a user for bad input.

    EdgepruneError            2
    ├── InputError            2    bad use or bad input
    │   └── RuntimeUnavailable 2   the inference runtime that was asked for is not on this machine
    ├── DeviceError           2    the GPU or its driver failed
    ├── GateError             1    a gate failed: accuracy, parity
    │   └── SignatureError    1    a hash or a signature does not hold
    └── Interrupted         130    stopped by the user; what was finished is kept
"""

from __future__ import annotations

__all__ = [
    "DeviceError",
    "EdgepruneError",
    "GateError",
    "InputError",
    "Interrupted",
    "RuntimeUnavailable",
    "SignatureError",
]


class EdgepruneError(Exception):
    """Every error that this project raises on purpose."""

    exit_code = 2


class InputError(EdgepruneError):
    """Bad use or bad input: a file, an option, a picture, a label."""


class RuntimeUnavailable(InputError):
    """The inference runtime that was asked for is not installed, or cannot run here."""


class DeviceError(EdgepruneError):
    """The GPU or its driver failed: what was called, CUDA's own words, what to do."""


class GateError(EdgepruneError):
    """A gate failed: accuracy, parity. The figures stand in the message."""

    exit_code = 1


class SignatureError(GateError):
    """A hash or a signature does not hold, or the key that made it is not trusted here."""


class Interrupted(EdgepruneError):
    """Stopped by the user. What was finished is kept."""

    exit_code = 130
