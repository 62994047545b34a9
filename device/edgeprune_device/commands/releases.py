"""The command `edgeprune releases`."""

from __future__ import annotations

import os

from edgeprune_device.commands import add_where, host

HELP = "what is installed on a device, and which of it is in use"


def configure(parser) -> None:
    """Add the options."""
    add_where(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, with what else an installation needs to know")


def run(args) -> None:
    """Show the releases of this device; on a host, those of another device."""
    from pathlib import Path

    from edgeprune_device import strict_json
    from edgeprune_device.errors import InputError
    from edgeprune_device.installation import describe
    from edgeprune_device.releases import DEFAULT_ROOT, Releases

    if elsewhere(args.where):
        host("deploy").releases(args.where, args.json)
        return
    root = Path(args.where or DEFAULT_ROOT)
    if not args.json and root.exists() and not root.is_dir():  # the JSON has it as "problem"
        raise InputError(f"{root}: is not a folder")
    described = describe.describe(Releases(root))
    print(strict_json.pretty(described) if args.json else describe.table(described), end="")


def elsewhere(where) -> bool:
    """Whether the argument WHERE names a drone that SSH reaches, and not a folder."""
    return where is not None and "/" not in where.partition(":")[0] and not os.path.isdir(where)
