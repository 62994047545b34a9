"""Deploy a bundle: onto a live drone, into a root file system, into a disk image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from edgeprune_device.options import KEEP, ROOT

__all__ = ["DEFAULT_ROOT", "DeploySettings"]

DEFAULT_ROOT = PurePosixPath(ROOT)


@dataclass(frozen=True)
class DeploySettings:
    """The settings of a deployment, the same for every kind of destination.

    Example: DeploySettings(keep=2, source="camera:0").

    Attributes:
        root: The folder on the drone that holds the releases; absolute.
        keep: The number of releases to keep, including the current one.
        unit: The systemd unit that is restarted.
        source: The frames that the service reads; if given, the unit is written.
        output: The destination of the service's detections; None takes the default of the drone's commands.
        health_s: Seconds that the new release must stay healthy; None takes the drone's default.
        max_drop: Largest drop of mAP50-95 on the drone, absolute; None takes the drone's default.
        limit_s: Longest time, s, of each step of the measurement there; None takes the drone's default.
        precision: The precision of the model to run; "auto" lets the drone choose.
        allow_untrusted: Also deploy a bundle whose key is not trusted.
        allow_older: Also deploy a bundle with a lower counter.
        dry_run: Only print the steps, and change nothing.
        agent: Put the agent into an image that does not have this version.
        partition: A partition of a disk image, by name or number; None takes APP, else the only ext4 partition.
    """

    root: PurePosixPath = DEFAULT_ROOT
    keep: int = KEEP.default
    unit: str | None = None
    source: str | None = None
    output: str | None = None
    health_s: float | None = None
    max_drop: float | None = None
    limit_s: float | None = None
    precision: str = "auto"
    allow_untrusted: bool = False
    allow_older: bool = False
    dry_run: bool = False
    agent: bool = True
    partition: str | None = None
