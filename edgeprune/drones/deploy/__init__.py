"""Deploy a bundle: onto a live drone, into a root file system, into a disk image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

__all__ = ["DEFAULT_ROOT", "DeploySettings"]

DEFAULT_ROOT = PurePosixPath("/opt/edgeprune")


@dataclass(frozen=True)
class DeploySettings:
    """What is asked of a deployment, the same for every kind of destination. E.g. Settings(keep=2, source="camera:0").

    - `root`: the folder on the drone that holds the releases; absolute
    - `keep`: releases that stay, the current one among them
    - `unit`: the systemd unit that is restarted; `source`: what the service reads, and the unit is written where it is
      given; `output`: where its detections go; None: as the drone's own commands have it
    - `health_s`: seconds that the new release must run well; `max_drop`: absolute mAP50-95 that it may lose on the
      drone; None: the drone's defaults
    - `precision`: of the model that is run, "auto" lets the drone choose
    - `allow_untrusted`: also a bundle whose key is not trusted; `allow_older`: also one with a lower counter
    - `dry_run`: say what would be done, and change nothing
    - `agent`: put the agent into an image that has none of this version
    - `partition`: of a disk image, a name or a number; None: APP, else the only ext4
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
