"""The command `edgeprune rollback`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from edgeprune_device.commands import add, add_where, host
from edgeprune_device.commands.releases import elsewhere
from edgeprune_device.option import Option, Text
from edgeprune_device.options import ROOT, UNIT

OPTIONS = (
    Option("to", Text(), "release to return to, see edgeprune releases (default: the newest good one)", metavar="ID"),
    UNIT,
)
HELP = "return to the release that was in use before"


def configure(parser: ArgumentParser) -> None:
    """Add the options."""
    add_where(parser)
    add(parser, OPTIONS)


def run(args: Namespace) -> None:
    """Roll back on this device; on a host, on another device."""
    from pathlib import Path

    from edgeprune_device.errors import InputError
    from edgeprune_device.installation import install
    from edgeprune_device.releases import Releases

    if elsewhere(args.where):
        host("deploy").rollback(args.where, args.to, args.unit)
        return

    def say(step: str, text: str) -> None:
        print(f"{step:<11} {text}", flush=True)

    releases = Releases(Path(args.where or ROOT))
    try:
        release = install.roll_back(releases, args.to, args.unit, say)
    except BlockingIOError as error:
        raise InputError(f"{releases.root}: an installation is in progress; try again when it has finished") from error
    print(f"{release} is in use, and {'good' if release.state == 'good' else 'on trial'}")
