"""The `edgeprune collect` command."""

from __future__ import annotations

from edgeprune.commands import options

HELP = "fetch a drone's reports, over SSH or from a folder such as a stick"


def configure(parser) -> None:
    """Add the arguments and options of `edgeprune collect`."""
    parser.add_argument("source", metavar="SOURCE", help="user@drone, or a folder: a stick, or a copied spool")
    parser.add_argument(
        "--trust-new", action="store_true", help="enrol devices not known yet, by the names they give themselves"
    )
    options.retries(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> None:
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
            source = f"the folder {args.source}"  # stated, because a host may have the same name
            outcome = collect(ReportFolder(Path(args.source)), store, trust_new=args.trust_new, say=line)
        elif "/" in args.source:
            raise InputError(f"{args.source}: no such folder")
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
        print(f"{shown(name)}: left alone: not a report, or another host has just fetched it", file=sys.stderr)
    outcome.check()
