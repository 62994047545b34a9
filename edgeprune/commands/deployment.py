"""The options of a deployment, which `deploy` and `pack` share."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from edgeprune_device import options
from edgeprune_device.errors import InputError
from edgeprune_device.option import Flag, Option, Text, Whole, named

if TYPE_CHECKING:
    from edgeprune.drones.deploy import DeploySettings

#: Options of a deployment to any destination.
ANY = (
    options.RELEASES.but(help="folder of the releases at the destination"),
    options.KEEP,
    options.SOURCE.but(help="write edgeprune.service at the destination, which runs the release on this camera, "
                       "video or folder",
                       default=None),
    options.OUTPUT.but(help="with --source: destination of the detections: -, a file or unix:PATH (default: -, the "
                       "journal)", default=None),
    Option("no_agent", Flag(), "do not install or update the agent in an image or a root file system", default=False),
    options.ALLOW_UNTRUSTED,
)  # fmt: skip
#: Options of a deployment to a drone.
DRONE = (
    options.UNIT.but(help="on a drone: the systemd unit to restart (default: the unit of edgeprune run)"),
    options.HEALTH.but(help="on a drone: time that the release must stay healthy, s", default=None),
    options.LIMIT.but(help="on a drone: " + options.LIMIT.help, default=None),
    options.MAX_DROP.but(help="on a drone: largest accuracy drop against the host's figure, absolute mAP50-95"),
)
#: Options of a deployment to a disk image.
IMAGE = (
    Option(
        "partition", Text(), "partition of a disk image (default: APP, else the only ext4 partition)", metavar="NAME"
    ),
)


def retries() -> Option:
    """The option of every command that uses a link."""
    from edgeprune.drones.ssh import RETRIES

    text = "maximum number of consecutive retries without progress"
    return Option("retries", Whole(0), text, default=RETRIES, metavar="N")


def drone(parser: ArgumentParser) -> None:
    """Add the positional argument for a drone."""
    parser.add_argument(
        "target", metavar="user@drone", help="address in the form of ssh: [user@]host[:port] or an alias"
    )


def settings(args: Namespace) -> DeploySettings:
    """The settings of the parsed arguments; an option that the command lacks has its default.

    Raises:
        InputError: the folder is not absolute, or two options exclude each other.
    """
    from edgeprune.drones.deploy import DeploySettings

    root = PurePosixPath(args.root)
    if not root.is_absolute() or ".." in root.parts or len(root.parts) < 2 or not str(root).isprintable():
        raise InputError(f"{named('root')}: invalid value (found {str(root)!r}, expected an absolute path without ..)")
    if args.output is not None and args.source is None:
        raise InputError(f"{named('output')}: needs {named('source')}, which writes the unit; give both, or neither")
    given = vars(args)
    if args.source is not None and given.get("unit") is not None:
        raise InputError(
            f"{named('source')} writes edgeprune.service, but {named('unit')} names another unit; give one of the two"
        )
    return DeploySettings(
        root=root,
        keep=args.keep,
        unit=given.get("unit"),
        source=args.source,
        output=args.output,
        health_s=given.get("health"),
        max_drop=given.get("max_drop"),
        limit_s=given.get("limit"),
        precision=given.get("precision", "auto"),
        allow_untrusted=args.allow_untrusted,
        allow_older=given.get("allow_older", False),
        dry_run=given.get("dry_run", False),
        agent=not args.no_agent,
        partition=given.get("partition"),
    )
