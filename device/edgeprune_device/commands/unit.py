"""edgeprune unit"""

from __future__ import annotations

from pathlib import Path

HELP = "print the systemd unit of the service"


def configure(parser) -> None:
    """Options."""
    parser.add_argument("--source", required=True, help="as of edgeprune run; paths must be absolute")
    parser.add_argument("--output", default="-", help="as of edgeprune run; default -, which systemd's journal reads")
    parser.add_argument("--root", metavar="FOLDER", type=Path, help="where the releases are; default /opt/edgeprune")
    parser.add_argument("--user", help="who runs it, in the groups video and render; default: you")


def run(args) -> None:
    """Print it."""
    import getpass
    import shutil
    import sys

    from edgeprune_device import keys
    from edgeprune_device.releases import DEFAULT_ROOT
    from edgeprune_device.service import unit

    user = args.user or getpass.getuser()
    executable = shutil.which(sys.argv[0]) or shutil.which("edgeprune") or sys.argv[0]
    root = str((args.root or DEFAULT_ROOT).absolute())
    home = str(keys.home().absolute())
    print(unit.text(user, str(Path(executable).absolute()), root, args.source, args.output, home), end="")
