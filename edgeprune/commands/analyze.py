"""edgeprune analyze"""

from __future__ import annotations

from pathlib import Path

from edgeprune.commands import options

HELP = "how much can go: accuracy against budget, the sensitivity of each group, a recommendation"


def configure(parser) -> None:
    options.weights(parser, required=True)
    options.data(parser, required=True, text="a data.yaml: its training pictures serve; the val pictures are not seen")
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
    import json
    import time

    from edgeprune_device.errors import InputError
    from edgeprune_device.files import check_writable, sha256, write_atomic
    from edgeprune_device.target import Target

    import edgeprune
    from edgeprune import analysis, chart, checkpoint, criteria, dataset, measure, samples
    from edgeprune.progress import Reporter
    from edgeprune.threads import use_all_cores

    start = time.monotonic()
    reporter = Reporter(quiet=args.quiet)
    use_all_cores()
    if args.plot and args.plot.suffix != ".png":
        raise InputError(f"--plot {args.plot}: a plot ends in .png")
    for path in (args.json, args.plot):
        if path:
            check_writable(path)
    target = Target.load(args.target)
    if args.criterion == "auto":
        raise InputError("analyze looks at one criterion at a time: --criterion energy, or another by name")
    criteria.load(args.criterion)
    source = checkpoint.load(args.weights)
    imgsz = source.input_size(args.imgsz)
    data = dataset.load(args.data)
    dataset.check_names(data, source.names)
    solve, select = samples.split(data.train, imgsz)
    if set(solve) & set(select):
        reporter.warn(f"only {len(data.train)} training pictures: measured on the pictures solved with, so too high")
    with reporter.stage("analyze") as step:
        found = analysis.analyze(
            source.model,
            criterion=args.criterion,
            kind=args.kind,
            multiple=target.channel_multiple,
            imgsz=imgsz,
            samples=samples.read(data, solve, imgsz),
            judges=samples.read(data, samples.pick(select, analysis.COMPARED), imgsz).pictures,
            measure=lambda model: measure.evaluate(measure.TorchSession(model), data, select, imgsz),
            step=step,
        )
    seconds = round(time.monotonic() - start, 1)
    if args.json:
        said = {
            **found.to_json(),
            "edgeprune": edgeprune.__version__,
            "weights": {"path": str(args.weights), "sha256": sha256(args.weights)},
            "data": {"path": str(args.data), "sha256": data.sha256},
            "target": target.name,
            "solved_with": len(solve),
            "solved_with_the_same": bool(set(solve) & set(select)),
            "seconds": seconds,
        }
        write_atomic(args.json, json.dumps(said, indent=1, allow_nan=False) + "\n")
    if args.plot:
        write_atomic(args.plot, chart.draw(found, args.weights.name))
    print(analysis.table(found))
    print(f"took {seconds:.0f} s")
