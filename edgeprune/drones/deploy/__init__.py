"""Deploy a bundle: onto a live drone, into a root file system, into a disk image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

__all__ = ["DEFAULT_ROOT", "DeploySettings"]

DEFAULT_ROOT = PurePosixPath("/opt/edgeprune")


@dataclass(frozen=True)
class DeploySettings:
    """The settings of a deployment, the same for every kind of destination.

    Example: DeploySettings(keep=2, source="camera:0").

    Attributes:
        root: The folder on the drone that holds the releases; absolute.
        keep: The number of releases that stay, the current one among them.
        unit: The systemd unit that is restarted.
        source: The frames that the service reads; where it is given, the unit is written.
        output: The destination of the service's detections; None takes the default of the drone's own commands.
        health_s: Seconds that the new release must run well; None takes the drone's default.
        max_drop: Absolute mAP50-95 that it may lose on the drone; None takes the drone's default.
        precision: Of the model that is run; "auto" lets the drone choose.
        allow_untrusted: Also deploy a bundle whose key is not trusted.
        allow_older: Also deploy a bundle with a lower counter.
        dry_run: Only tell what would be done, and change nothing.
        agent: Put the agent into an image that has none of this version.
        partition: Of a disk image, a name or a number; None takes APP, else the only ext4.
    """

    root: PurePosixPath = DEFAULT_ROOT
    keep: int = 3
    unit: str | None = None
    source: str | None = None
    output: str | None = None
    health_s: float | None = None
    max_drop: float | None = None
    precision: str = "auto"
    allow_untrusted: bool = False
    allow_older: bool = False
    dry_run: bool = False
    agent: bool = True
    partition: str | None = None
