"""The command `edgeprune unit`."""

from __future__ import annotations

from pathlib import Path

HELP = "print the systemd unit of the service"


def configure(parser) -> None:
    """Add the options."""
    parser.add_argument("--source", required=True, help="as of edgeprune run; paths must be absolute")
    parser.add_argument("--output", default="-", help="as of edgeprune run; default -, which systemd's journal reads")
    parser.add_argument("--root", metavar="FOLDER", type=Path, help="where the releases are; default /opt/edgeprune")
    parser.add_argument("--user", help="who runs it, in the groups video and render; default: you")


def run(args) -> None:
    """Print the unit."""
    import getpass

    from edgeprune_device.errors import InputError
    from edgeprune_device.installation import restart
    from edgeprune_device.releases import DEFAULT_ROOT
    from edgeprune_device.service import unit
    from edgeprune_device.trust import keys

    command = restart.command()
    if not command.is_file():
        raise InputError(f"{command}: no such file; the unit starts edgeprune as pip or edgeprune setup installs it")
    root = str((args.root or DEFAULT_ROOT).absolute())
    home = str(keys.home().absolute())
    print(unit.text(args.user or getpass.getuser(), str(command), root, args.source, args.output, home), end="")
