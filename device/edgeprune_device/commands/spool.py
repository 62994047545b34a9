"""The command `edgeprune spool`."""

from __future__ import annotations

from pathlib import Path

HELP = "the reports that wait here for edgeprune collect; --to copies them to a stick"


def configure(parser) -> None:
    """Add the options."""
    parser.add_argument("--to", metavar="FOLDER", type=Path, help="copy what waits there; it goes on waiting here")
    parser.add_argument("--prune", action="store_true", help="remove the reports that the host has")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> None:
    """Copy or prune the reports, then list them."""
    from edgeprune_device import strict_json
    from edgeprune_device.errors import InputError
    from edgeprune_device.reports.spool import Spool

    spool = Spool()
    if args.to is not None and not args.to.is_dir():
        raise InputError(f"{args.to}: no such folder; make it first")
    copied = spool.copy_pending(args.to) if args.to else []
    pruned = spool.prune() if args.prune else []
    entries = spool.entries()
    if args.json:
        listed = [{**entry._asdict(), "path": str(entry.path)} for entry in entries]
        told = {"folder": str(spool.folder), "reports": listed, "copied": copied, "pruned": pruned}
        print(strict_json.pretty(told), end="")
        return
    for entry in entries:
        print(f"{entry.id[:12]}  {entry.size_bytes / 1e6:8.2f} MB  {'delivered' if entry.delivered else 'waits'}")
    waiting = sum(not entry.delivered for entry in entries)
    print(f"{waiting} waiting, {len(entries) - waiting} delivered, in {spool.folder}")
    if args.to:
        print(f"{len(copied)} copied to {args.to}")
    if args.prune:
        print(f"{len(pruned)} removed")
