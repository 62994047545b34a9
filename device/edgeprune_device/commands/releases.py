"""The command `edgeprune releases`."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from typing import Optional

from edgeprune_device.commands import add_where, host
from edgeprune_device.options import JSON, ROOT

HELP = "list a device's releases and show which one is in use"


def configure(parser: ArgumentParser) -> None:
    """Add the options."""
    add_where(parser)
    JSON.but(help="print JSON, including the fields that an installation needs").add(parser)


def run(args: Namespace) -> None:
    """Show the releases of this device; on a host, the releases of another device."""
    from pathlib import Path

    from edgeprune_device import strict_json
    from edgeprune_device.errors import InputError
    from edgeprune_device.installation import describe
    from edgeprune_device.releases import Releases

    if elsewhere(args.where):
        host("deploy").releases(args.where, args.json)
        return
    root = Path(args.where or ROOT)
    if not args.json and root.exists() and not root.is_dir():  # the JSON reports it as "problem"
        raise InputError(f"{root}: not a folder; give the releases folder as WHERE")
    described = describe.describe(Releases(root))
    print(strict_json.pretty(described) if args.json else describe.table(described), end="")


def elsewhere(where: Optional[str]) -> bool:
    """Whether the argument WHERE names a drone that SSH reaches, and not a folder."""
    return where is not None and "/" not in where.partition(":")[0] and not os.path.isdir(where)
