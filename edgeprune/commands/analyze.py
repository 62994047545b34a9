"""The `edgeprune analyze` command."""

from __future__ import annotations

from pathlib import Path

from edgeprune.commands import options

HELP = "how much can go: accuracy against budget, the sensitivity of each group, a recommendation"


def configure(parser) -> None:
    """Add the arguments and options of `edgeprune analyze`."""
    options.weights(parser, required=True)
    options.data(parser, required=True, text="as for build: its training pictures serve; the val pictures are not seen")
    options.imgsz(parser)
    parser.add_argument(
        "--criterion", default="energy", metavar="NAME", help="who chooses, as for prune; not auto (default energy)"
    )
    options.target(parser, required=False)
    parser.add_argument(
        "--kind", choices=("macs", "params", "ratio"), default="macs", help="what the budgets count (default macs)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything found as JSON too")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it too")
    options.quiet(parser)


def run(args) -> None:
    """Run `edgeprune analyze` with parsed arguments, and print the result."""
    import json
    import time

    from edgeprune_device.errors import InputError
    from edgeprune_device.files import check_writable, sha256, write_atomic

    from edgeprune import versions
    from edgeprune.api.analyze import analyze
    from edgeprune.data import dataset

    start = time.monotonic()
    if args.plot and args.plot.suffix != ".png":
        raise InputError(f"--plot {args.plot}: a plot ends in .png")
    for path in (args.json, args.plot):
        if path:
            check_writable(path)
    found = analyze(
        args.weights, args.data, kind=args.kind, criterion=args.criterion, imgsz=args.imgsz, target=args.target,
        quiet=args.quiet,
    )  # fmt: skip
    seconds = round(time.monotonic() - start, 1)
    if args.json:
        said = {
            **found.to_json(),
            "edgeprune": versions.edgeprune(),
            "weights": {"path": str(args.weights), "sha256": sha256(args.weights)},
            "data": {"path": str(args.data), "sha256": dataset.load(args.data).sha256},
            "target": args.target,
            "seconds": seconds,
        }
        write_atomic(args.json, json.dumps(said, indent=1, allow_nan=False) + "\n")
    if args.plot:
        found.save_plot(args.plot)
    print(found)
    print(f"took {seconds:.0f} s")
