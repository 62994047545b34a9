"""The `edgeprune collect` command."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from edgeprune_device.option import Flag, Option
from edgeprune_device.options import JSON

from edgeprune.commands import deployment

_TRUST_NEW = Option("trust_new", Flag(), "enrol unknown devices under the names that they report", default=False)
HELP = "fetch a drone's reports over SSH, or from a folder such as a USB stick"


def configure(parser: ArgumentParser) -> None:
    """Add the arguments and options of `edgeprune collect`."""
    parser.add_argument("source", metavar="SOURCE", help="user@drone, or a folder: a USB stick or a copied spool")
    _TRUST_NEW.add(parser)
    deployment.retries().add(parser)
    JSON.add(parser)


def run(args: Namespace) -> None:
    """Run `edgeprune collect` with parsed arguments, and print the result."""
    import sys
    from dataclasses import asdict
    from pathlib import Path

    from edgeprune_device import strict_json
    from edgeprune_device.errors import InputError
    from edgeprune_device.progress import Line

    from edgeprune.drones.collect import Drone, ReportFolder, collect
    from edgeprune.drones.ssh import Link, shown
    from edgeprune.drones.store import Store

    store, source = Store(), args.source
    with Line() as line:
        if Path(args.source).is_dir():
            source = f"the folder {args.source}"  # says "folder", because a host may have the same name
            outcome = collect(ReportFolder(Path(args.source)), store, trust_new=args.trust_new, say=line)
        elif "/" in args.source:
            raise InputError(f"{args.source}: no such folder; give user@drone or a folder of reports")
        else:
            with Link(
                args.source, retries=args.retries, say=lambda text: print(text, file=sys.stderr, flush=True)
            ) as link:
                outcome = collect(Drone(link), store, trust_new=args.trust_new, say=line)
    if args.json:
        print(strict_json.pretty({"folder": str(store.folder), **asdict(outcome)}), end="")
    else:
        for identity, device in outcome.collected.items():
            print(f"{identity[:12]}  {device}")
        counts = f"{len(outcome.collected)} collected from {source}, {len(outcome.known)} already here"
        print(f"{counts}; in {store.folder} (edgeprune reports shows them)")
    for name in outcome.left:
        print(f"{shown(name)}: skipped (not a report, or just fetched by another host)", file=sys.stderr)
    outcome.check()
