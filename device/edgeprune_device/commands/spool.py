"""The command `edgeprune spool`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from edgeprune_device.commands import add
from edgeprune_device.option import File, Flag, Option
from edgeprune_device.options import JSON

OPTIONS = (
    Option("to", File(), "copy the waiting reports into this folder and keep the originals", metavar="FOLDER"),
    Option("prune", Flag(), "remove the reports that the host has collected", default=False),
    JSON,
)
HELP = "list the reports that wait for edgeprune collect; --to copies the reports to a folder such as a USB stick"


def configure(parser: ArgumentParser) -> None:
    """Add the options."""
    add(parser, OPTIONS)


def run(args: Namespace) -> None:
    """Copy or prune the reports, then list them."""
    from edgeprune_device import strict_json
    from edgeprune_device.errors import InputError
    from edgeprune_device.reports.spool import Spool

    spool = Spool()
    if args.to is not None and not args.to.is_dir():
        raise InputError(f"{args.to}: no such folder; create it first")
    copied = spool.copy_pending(args.to) if args.to else []
    pruned = spool.prune() if args.prune else []
    entries = spool.entries()
    if args.json:
        listed = [{**entry._asdict(), "path": str(entry.path)} for entry in entries]
        listing = {"folder": str(spool.folder), "reports": listed, "copied": copied, "pruned": pruned}
        print(strict_json.pretty(listing), end="")
        return
    for entry in entries:
        print(f"{entry.id[:12]}  {entry.size_bytes / 1e6:8.2f} MB  {'delivered' if entry.delivered else 'waits'}")
    waiting = sum(not entry.delivered for entry in entries)
    print(f"reports  {waiting} waiting, {len(entries) - waiting} delivered, in {spool.folder}")
    if args.to:
        print(f"reports  {len(copied)} copied to {args.to}")
    if args.prune:
        print(f"reports  {len(pruned)} removed")
