"""Options of an installation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional

__all__ = ["HEALTH_S", "KEEP", "MAX_DROP", "InstallOptions", "Say"]

Say = Callable[[str, str], None]

KEEP, MAX_DROP, HEALTH_S = 3, 0.01, 30.0


@dataclass(frozen=True)
class InstallOptions:
    """How to install a bundle.

    Attributes:
        precision: Precision of the model, or "auto".
        runtime: Name of the runtime, or "auto".
        max_drop: Largest accuracy drop (mAP50-95) against the host's figure on the same images.
        keep: Number of releases to keep, the new one included.
        health_s: How long the release must be healthy, s.
        unit: The systemd unit to restart; None: `edgeprune run`, where it runs.
        source: Source of frames for edgeprune.service, which is then written; None: leave that unit unchanged.
        output: Output of edgeprune.service; None: standard output.
        allow_untrusted: Accept an intact bundle of an untrusted key.
        allow_older: Accept a bundle with a counter below the device's.
    """

    precision: str = "auto"
    runtime: str = "auto"
    max_drop: float = MAX_DROP
    keep: int = KEEP
    health_s: float = HEALTH_S
    unit: Optional[str] = None
    source: Optional[str] = None
    output: Optional[str] = None
    allow_untrusted: bool = False
    allow_older: bool = False
