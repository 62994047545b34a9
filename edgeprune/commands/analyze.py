"""The `edgeprune analyze` command."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from edgeprune.options import ANALYSIS_JSON, DATA, PLOT, WEIGHTS, AnalyzeOptions, add, given

HELP = "measure accuracy against budget and the sensitivity of each group, and recommend a budget"


def configure(parser: ArgumentParser) -> None:
    """Add the options of `edgeprune analyze`."""
    WEIGHTS.add(parser)
    DATA.but(help=f"{DATA.help}; only its training images are used", required=True).add(parser)
    add(parser, AnalyzeOptions)
    ANALYSIS_JSON.add(parser)
    PLOT.add(parser)


def run(args: Namespace) -> None:
    """Run `edgeprune analyze` with parsed arguments, and print the result."""
    import json
    import time

    from edgeprune_device.files import check_writable, sha256, write_atomic

    from edgeprune import versions
    from edgeprune.api.analyze import analyze
    from edgeprune.data import dataset
    from edgeprune.model import checkpoint

    start = time.monotonic()
    for path in (args.json, args.plot):
        if path:
            check_writable(path)
    analysis = analyze(args.weights, args.data, **given(args, AnalyzeOptions))
    seconds = round(time.monotonic() - start, 1)
    if args.json:
        images = dataset.load(args.data, task=checkpoint.load(args.weights).task)
        content = {
            **analysis.to_json(),
            "edgeprune": versions.edgeprune(),
            "weights": {"path": str(args.weights), "sha256": sha256(args.weights)},
            "data": {"path": str(args.data), "sha256": images.sha256},
            "target": args.target,
            "seconds": seconds,
        }
        write_atomic(args.json, json.dumps(content, indent=1, allow_nan=False) + "\n")
    if args.plot:
        analysis.save_plot(args.plot)
    print(analysis)
    print(f"The analysis took {seconds:.0f} s.")
