"""The error tree, shared by host and device.

A message is one line: object, problem, remedy. The command line prints it and exits with `exit_code`; no
traceback reaches a user for bad input.

    EdgepruneError            2
    ├── InputError            2    bad use or bad input
    │   └── RuntimeUnavailable 2   the requested inference runtime is not available
    ├── DeviceError           2    the GPU or its driver failed
    ├── GateError             1    a gate failed: accuracy, parity
    │   └── SignatureError    1    a hash or a signature is wrong
    └── Interrupted         130    stopped by the user; finished work is kept
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
    "reason",
]


class EdgepruneError(Exception):
    """Base class of all errors that this project raises deliberately.

    Attributes:
        exit_code: Exit code of the command line.
    """

    exit_code = 2


class InputError(EdgepruneError):
    """Bad use or bad input: a file, an option, an image, a label."""


class RuntimeUnavailable(InputError):
    """The requested inference runtime is not installed, or cannot run here."""


class DeviceError(EdgepruneError):
    """The GPU or its driver failed; the message contains the call, CUDA's message and the remedy."""


class GateError(EdgepruneError):
    """A gate failed: accuracy, parity. The message contains the figures."""

    exit_code = 1


class SignatureError(GateError):
    """A hash or a signature is wrong, or this machine does not trust the key that made it."""


class Interrupted(EdgepruneError):
    """Stopped by the user. Finished work is kept."""

    exit_code = 130


def reason(error: OSError) -> str:
    """The system's text for an error, for use in a message: "no space left on device"."""
    return str(error.strerror or error or type(error).__name__).lower()
