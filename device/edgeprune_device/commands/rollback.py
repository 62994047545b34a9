"""The command `edgeprune rollback`."""

from __future__ import annotations

from edgeprune_device.commands import add_where, host
from edgeprune_device.commands.releases import elsewhere

HELP = "let the release that was in use before be in use again"


def configure(parser) -> None:
    """Add the options."""
    add_where(parser)
    parser.add_argument("--to", metavar="ID", help="this one (see edgeprune releases; default: the newest good one)")
    parser.add_argument("--unit", metavar="NAME", help="the systemd unit to restart (default: edgeprune run's)")


def run(args) -> None:
    """Roll back on this device; on a host, on another device."""
    from pathlib import Path

    from edgeprune_device.errors import InputError
    from edgeprune_device.installation import install
    from edgeprune_device.releases import DEFAULT_ROOT, Releases

    if elsewhere(args.where):
        host("deploy").rollback(args.where, args.to, args.unit)
        return

    def say(step: str, text: str) -> None:
        print(f"{step:<11} {text}", flush=True)

    releases = Releases(Path(args.where or DEFAULT_ROOT))
    try:
        release = install.roll_back(releases, args.to, args.unit, say)
    except BlockingIOError as error:
        raise InputError(f"{releases.root}: an installation is at work here; try again when it has ended") from error
    print(f"{release} is in use, and {'good' if release.state == 'good' else 'on trial'}")
