"""edgeprune compare"""

from __future__ import annotations

from pathlib import Path

from edgeprune.commands import options

HELP = "several models in one table, measured in one run in turns"


def configure(parser) -> None:
    parser.add_argument(
        "items", nargs="+", metavar="ITEM",
        help="a .pt, .onnx, bundle (.epb) or bench report (.json), the id of a collected report, or reports: all",
    )  # fmt: skip
    options.data(parser, required=False, text="a data.yaml: mAP and objects found on its val pictures")
    options.imgsz(parser)
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads for the timing (default 1)")
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="turns of the timing (default 40)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison as JSON too")
    options.quiet(parser)


def run(args) -> None:
    import json

    from edgeprune_device.errors import InputError
    from edgeprune_device.files import check_writable, write_atomic

    from edgeprune import comparison, dataset
    from edgeprune.progress import Reporter

    if args.threads < 1 or args.rounds < 1:
        raise InputError("--threads and --rounds must be at least 1")
    if args.json:
        check_writable(args.json)
    reporter = Reporter(quiet=args.quiet)
    data = dataset.load(args.data) if args.data else None
    reports = [row for text in args.items if comparison.is_recorded(text) for row in comparison.recorded(text)]
    items = [i for text in args.items if not comparison.is_recorded(text) for i in comparison.open_item(text, args.imgsz)]
    with reporter.stage("compare") as step:
        result = comparison.compare(items, data, reports, threads=args.threads, rounds=args.rounds, step=step)
    if args.json:
        write_atomic(args.json, json.dumps(result, indent=1) + "\n")
    print(comparison.table(result))
