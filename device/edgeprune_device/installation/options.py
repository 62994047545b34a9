"""How to install a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional

__all__ = ["HEALTH_S", "KEEP", "MAX_DROP", "InstallOptions", "Say"]

Say = Callable[[str, str], None]

KEEP, MAX_DROP, HEALTH_S = 3, 0.01, 30.0


@dataclass(frozen=True)
class InstallOptions:
    """How to install.

    - `max_drop`: mAP50-95 that may be lost against the host's figure on the same pictures
    - `keep`: releases that stay, this one included; `health_s`: how long it must be healthy, s
    - `unit`: the systemd unit to restart; None: `edgeprune run`, where it runs
    - `source`, `output`: write edgeprune.service, which runs this release on them; None: leave it as it is
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
