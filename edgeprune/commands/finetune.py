"""edgeprune finetune"""

from __future__ import annotations

from pathlib import Path

from edgeprune.commands import options

HELP = "train a checkpoint further with its architecture kept"


def configure(parser) -> None:
    options.weights(parser, required=True)
    options.data(parser, required=True)
    options.imgsz(parser)
    options.training(parser)
    parser.add_argument(
        "--distill", type=Path, metavar="FILE", help="learn from this checkpoint's answers too: the unpruned original"
    )
    parser.add_argument(
        "--sparsity",
        type=float,
        default=0.0,
        metavar="X",
        help="Network Slimming, before pruning: each step takes X from every prunable batch-norm scale (times the "
        "learning rate's place in its schedule); at most --lr (default 0)",
    )
    options.qat(
        parser,
        "instead train N epochs (2 if no number is given) at a tenth of --lr with weights and activations rounded as "
        "the signed INT8 file rounds them; `edgeprune export` then writes it with the same scales",
    )
    options.out(parser, "the tuned checkpoint (default: <weights>-tuned.pt beside it, with --qat <weights>-qat.pt)")
    options.quiet(parser)


def run(args) -> None:
    import shutil
    from dataclasses import replace

    from edgeprune_device.errors import InputError
    from edgeprune_device.files import check_writable

    from edgeprune import checkpoint, dataset, finetuning, measure, qat, sparsity
    from edgeprune.count import count
    from edgeprune.progress import Reporter

    reporter = Reporter(quiet=args.quiet)
    source = checkpoint.load(args.weights)
    data = dataset.load(args.data)
    dataset.check_names(data, source.names)
    imgsz = source.input_size(args.imgsz)
    rounding = options.qat_epochs(args)
    settings = finetuning.Settings(
        args.epochs, args.batch, args.lr, imgsz, args.device, args.workers, args.seed, args.patience, args.sparsity
    )
    if rounding:
        settings = replace(settings, epochs=rounding, lr=args.lr * qat.RATE, qat=True)
        qat.thresholds(source)  # for the figure before; damaged ones are told before the training
    out = args.out or args.weights.with_name(f"{args.weights.stem}-{'qat' if rounding else 'tuned'}.pt")
    if out.suffix != ".pt":
        raise InputError(f"--out {out}: a checkpoint ends in .pt")
    check_writable(out)
    work = out.with_name(f".{out.stem}-training")  # an interrupted run of the same settings goes on from here
    with reporter.stage("finetune") as step:
        result = finetuning.finetune(
            args.weights, data, out, settings, work, teacher=args.distill,
            on_step=lambda p: step((p.epoch - 1 + p.step / p.steps) / p.epochs, f"epoch {p.epoch}/{p.epochs}"),
        )  # fmt: skip
    shutil.rmtree(work, ignore_errors=True)
    tuned = checkpoint.load(out)
    rows = []
    for name, state in (("before", source), ("after", tuned)):
        sessions = [measure.TorchSession(state.model)]
        if rounding:
            sessions.append(measure.ReferenceSession(qat.int8(state, data, imgsz)))
        found = []
        for session in sessions:
            with reporter.stage(f"measure {name}") as step:

                def shown(n, step=step):
                    step(n / len(data.val), f"{n}/{len(data.val)} pictures")

                found.append(measure.evaluate(session, data, data.val, imgsz, shown)[0].map50_95)
        parameters = count(state.model, (imgsz, imgsz)).parameters
        rounded = f", INT8 {found[1]:.4f}" if rounding else ""
        rows.append(f"{name:<7} {parameters:>10,} parameters  mAP50-95 {found[0]:.4f}{rounded}")
    print("\n".join(rows))
    if args.sparsity:
        for name, state in (("before", source), ("after", tuned)):
            small, scales = sparsity.count_small(state.model)
            print(f"{name:<7} {small:,} of {scales:,} prunable scales below {sparsity.SMALL:g} of the layer's largest")
    best = f" (the best was epoch {result['best_epoch']})" if args.patience else ""
    print(
        f"{result['epochs']} epochs{best}, {result['steps']} steps of {result['batch']} pictures, "
        f"lr {settings.lr:g}: {out}"
    )
