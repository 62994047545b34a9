"""edgeprune prune"""

from __future__ import annotations

from pathlib import Path

from edgeprune.commands import options

HELP = "remove channels for real; with --data also choose and compensate on pictures"


def configure(parser) -> None:
    options.weights(parser, required=True)
    options.ratio(parser)
    options.criterion(parser)
    options.data(parser, required=False, text="a data.yaml: its training pictures serve to choose and to compensate")
    options.imgsz(parser)
    options.target(parser, required=False)
    options.out(parser, "the pruned checkpoint (default: <weights>-pruned.pt beside it); the plan goes beside as .json")
    options.quiet(parser)


def run(args) -> None:
    from edgeprune_device.errors import InputError
    from edgeprune_device.files import check_writable
    from edgeprune_device.target import Target

    from edgeprune import checkpoint, dataset, measure, pruning, samples
    from edgeprune.count import count
    from edgeprune.progress import Reporter
    from edgeprune.threads import use_all_cores

    reporter = Reporter(quiet=args.quiet)
    use_all_cores()
    if not 0 <= args.ratio < 1:
        raise InputError(f"--ratio {args.ratio:g} is outside [0, 1): it is the fraction of channels to remove")
    multiple = Target.load(args.target).channel_multiple
    source = checkpoint.load(args.weights)
    imgsz = source.input_size(args.imgsz)
    out = args.out or args.weights.with_name(f"{args.weights.stem}-pruned.pt")
    if out.suffix != ".pt":
        raise InputError(f"--out {out}: a checkpoint ends in .pt")
    check_writable(out)
    features = score = None
    if args.data:
        data = dataset.load(args.data)
        dataset.check_names(data, source.names)
        solve, select = samples.split(data.train, imgsz)
        features = samples.read(data, solve, imgsz)

        def score(model):
            return measure.evaluate(measure.TorchSession(model), data, select, imgsz)[0].map50_95

    else:
        reporter.say("no --data: chosen by batch-norm scales alone, nothing compensated; accuracy not measured")
    with reporter.stage("prune") as step:
        chosen, tried = pruning.choose(
            source.model, criterion=args.criterion, ratio=args.ratio, multiple=multiple, samples=features, score=score,
            step=step,
        )  # fmt: skip
    before, after = count(source.model, (imgsz, imgsz)), count(chosen.model, (imgsz, imgsz))
    checkpoint.save(out, chosen.model, like=source)
    chosen.plan.save(out.with_suffix(".json"))
    print(_told(chosen, tried, before, after, len(checkpoint.to_bytes(source.model, source)), out))


def _told(chosen, tried, before, after, size: int, out: Path) -> str:
    rows = [
        ("prunable channels", chosen.plan.prunable, chosen.plan.prunable - chosen.plan.removed),
        ("parameters", before.parameters, after.parameters),
        ("MACs", before.macs, after.macs),
        ("file bytes", size, out.stat().st_size),
    ]
    lines = [f"{name:<18} {a:>14,} -> {b:>14,}  ({b / a:.1%})" for name, a, b in rows]
    measured = ", ".join(f"{k} {v:.3f}" for k, v in tried.items() if v is not None)
    lines.append(f"chosen by          {chosen.plan.criterion}" + (f"  (mAP50-95 now: {measured})" if measured else ""))
    lines.append(f"convolutions re-solved on pictures: {chosen.solved}")
    lines.append(f"written            {out} and {out.with_suffix('.json')}")
    return "\n".join(lines)
