"""edgeprune prune"""

from __future__ import annotations

from pathlib import Path

from edgeprune.commands import options

HELP = "remove channels for real; with --data also choose and compensate on pictures"


def configure(parser) -> None:
    options.weights(parser, required=True)
    options.budget(parser)
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

    from edgeprune import checkpoint, criteria, dataset, measure, pruning, samples
    from edgeprune.count import count
    from edgeprune.progress import Reporter
    from edgeprune.threads import use_all_cores

    reporter = Reporter(quiet=args.quiet)
    use_all_cores()
    budget = options.asked(args)
    criterion = criteria.resolve(args.criterion, pictures=args.data is not None)
    multiple = Target.load(args.target).channel_multiple
    source = checkpoint.load(args.weights, checkpoint.TASKS if args.data is None else ("detect",))
    imgsz = source.input_size(args.imgsz)
    out = args.out or args.weights.with_name(f"{args.weights.stem}-pruned.pt")
    if out.suffix != ".pt":
        raise InputError(f"--out {out}: a checkpoint ends in .pt")
    check_writable(out)
    features = None
    if args.data:
        data = dataset.load(args.data)
        dataset.check_names(data, source.names)
        solve, select = samples.split(data.train, imgsz)
        features = samples.read(data, solve, imgsz)
    else:
        reporter.say(f"no --data: chosen by {criterion}, nothing compensated; accuracy not measured")
    with reporter.stage("prune") as step:
        asked, latency, _ = pruning.measured(budget, source.model, imgsz, multiple, step)
        ask = pruning.Ask(asked, multiple, imgsz, args.uniform, args.portable, latency)
        chosen = pruning.prune(source.model, criterion=criterion, ask=ask, samples=features, step=step)
    rows = []
    if latency is not None:
        rows.append(f"latency            {latency.full_ms:.1f} ms -> {asked.value * latency.full_ms:.1f} ms predicted "
                    f"(median error {latency.error_median:.1%}; {latency.runtime})")  # fmt: skip
    if args.data:
        with reporter.stage("measure") as step:
            a, b = (
                measure.evaluate(measure.TorchSession(m), data, select, imgsz)[0].map50_95
                for m in (source.model, chosen.model)
            )
        rows.append(f"mAP50-95           {a:.3f} -> {b:.3f} before any training, on {len(select)} training pictures"
                    + (" that nothing was solved with" if not set(select) & set(solve) else ""))  # fmt: skip
    before, after = count(source.model, (imgsz, imgsz)), count(chosen.model, (imgsz, imgsz))
    checkpoint.save(out, chosen.model, like=source)
    chosen.plan.save(out.with_suffix(".json"))
    print(_told(chosen, before, after, len(checkpoint.to_bytes(source.model, source)), rows, out))


def _told(chosen, before, after, size: int, more: list[str], out: Path) -> str:
    rows = [
        ("prunable channels", chosen.plan.prunable, chosen.plan.prunable - chosen.plan.removed),
        ("parameters", before.parameters, after.parameters),
        ("MACs", before.macs, after.macs),
        ("file bytes", size, out.stat().st_size),
    ]
    lines = [f"{name:<18} {a:>14,} -> {b:>14,}  ({b / a:.1%})" for name, a, b in rows]
    lines.append(f"chosen by          {chosen.plan.criterion}")
    lines.append(f"re-solved          {chosen.solved} convolutions, on pictures")
    lines += more
    lines.append(f"written            {out} and {out.with_suffix('.json')}")
    return "\n".join(lines)
