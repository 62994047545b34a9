"""The command `edgeprune unit`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from edgeprune_device.commands import add
from edgeprune_device.option import Option, Text
from edgeprune_device.options import OUTPUT, RELEASES, SOURCE

OPTIONS = (
    SOURCE.but(help="source of frames, as for edgeprune run; paths must be absolute", default=None, required=True),
    OUTPUT.but(help="destination of the detections, as for edgeprune run; - is systemd's journal"),
    RELEASES,
    Option("user", Text(), "user that runs the service, a member of video and render (default: you)", metavar="NAME"),
)
HELP = "print the systemd unit of the service"


def configure(parser: ArgumentParser) -> None:
    """Add the options."""
    add(parser, OPTIONS)


def run(args: Namespace) -> None:
    """Print the unit."""
    import getpass

    from edgeprune_device.errors import InputError
    from edgeprune_device.installation import restart
    from edgeprune_device.service import unit
    from edgeprune_device.trust import keys

    command = restart.command()
    if not command.is_file():
        raise InputError(f"{command}: no such file; install this command for the unit with pip or edgeprune setup")
    root = str(args.root.absolute())
    home = str(keys.home().absolute())
    print(unit.text(args.user or getpass.getuser(), str(command), root, args.source, args.output, home), end="")
