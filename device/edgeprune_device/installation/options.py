"""Options of an installation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional

from edgeprune_device import options
from edgeprune_device.engine import process

__all__ = ["LONGEST_WATCH_S", "InstallOptions", "SayStep", "longest_s", "measure_s"]

#: Longest time until a new release is healthy, s: the service may be building an engine.
LONGEST_WATCH_S = 1800.0
_SPARE_S = 600.0  # for the steps without a model: copying, hashing

#: Receives the name of a step and a line of text.
SayStep = Callable[[str, str], None]


@dataclass(frozen=True)
class InstallOptions:
    """Settings for installing a bundle.

    Attributes:
        precision: Precision of the model, or "auto".
        runtime: Name of the runtime, or "auto".
        max_drop: Largest accuracy drop (mAP50-95) against the host's figure on the same images.
        keep: Number of releases to keep, including the new one.
        health_s: How long the release must be healthy, s.
        limit_s: Longest time for each step of the measurement, s, see `BenchmarkOptions`.
        unit: The systemd unit to restart; None: that of `edgeprune run`, if it is running.
        source: Source of frames for edgeprune.service, which is then written; None: leave that unit unchanged.
        output: Output of edgeprune.service; None: standard output.
        allow_untrusted: Accept an intact bundle of an untrusted key.
        allow_older: Accept a bundle with a counter below the one that the device holds for its key.
    """

    precision: str = options.PRECISION.default
    runtime: str = options.RUNTIME.default
    max_drop: float = options.INSTALL_MAX_DROP.default
    keep: int = options.KEEP.default
    health_s: float = options.HEALTH.default
    limit_s: float = options.LIMIT.default
    unit: Optional[str] = None
    source: Optional[str] = None
    output: Optional[str] = None
    allow_untrusted: bool = False
    allow_older: bool = False


def measure_s(limit_s: float) -> float:
    """Longest time of the measurement, s: the build of an engine, and three steps of `limit_s`."""
    return process.TIMEOUT_S + 3 * limit_s + _SPARE_S


def longest_s(limit_s: float, health_s: float) -> float:
    """Longest time of an installation, s; one that takes longer hangs."""
    return measure_s(limit_s) + process.TIMEOUT_S + LONGEST_WATCH_S + health_s + _SPARE_S
