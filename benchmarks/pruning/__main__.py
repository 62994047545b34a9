"""Compares pruning methods on one machine, in one run:

    pip install -r benchmarks/pruning/requirements.txt
    python -m benchmarks.pruning --weights best.pt --data data.yaml --macs 0.8,0.6,0.4 --epochs 10 --seeds 3 \\
        --out benchmarks/results/hituav-pruning

For every method at every budget it measures: mAP after surgery alone, after batch-norm recalibration on 64 training
images (ours also after compensation), and after the same fine-tuning with each seed; ONNX Runtime latency, measured
alternately; whether stock YOLO() opens the checkpoint in a process without edgeprune. Writes OUT.json, OUT.md and
OUT.png.

Finished cells stay in --work and are not repeated, so a run may be interrupted, or divided with --only and --macs. The
tables always show all cells in --work. To repeat a cell, delete its folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from edgeprune_device.errors import EdgepruneError, InputError
from edgeprune_device.files import check_writable, write_atomic
from edgeprune_device.hint import unknown

from benchmarks.pruning import cells, plot, results
from benchmarks.pruning.methods import METHODS
from edgeprune.data import dataset
from edgeprune.model import checkpoint
from edgeprune.model.threads import use_all_cores
from edgeprune.training import finetune


def arguments() -> argparse.Namespace:
    lines = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser("python -m benchmarks.pruning", description=__doc__, formatter_class=lines)
    p.add_argument("--weights", type=Path, required=True)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True, help="base name of the results, without a suffix")
    p.add_argument("--work", type=Path, help="folder of the cells (default: runs/<name of --out>)")
    p.add_argument("--macs", default="0.8,0.6,0.4", help="fractions of the MACs to keep (default: %(default)s)")
    p.add_argument("--only", default=",".join(METHODS), help="methods (default: %(default)s)")
    p.add_argument("--epochs", type=int, default=10)
    p.add_argument("--seeds", type=int, default=3, help="fine-tuning runs per cell; 0: none (default: %(default)s)")
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--lr", type=float, default=1e-4)
    p.add_argument("--imgsz", type=int, help="default: the training size of the weights")
    p.add_argument("--device", default="cpu", help="device for fine-tuning")
    p.add_argument(
        "--multiple",
        type=int,
        default=8,
        help="multiple of the kept channel counts, for all methods (default: %(default)s)",
    )
    return p.parse_args()


def main(args: argparse.Namespace) -> None:
    use_all_cores()
    methods = args.only.split(",")
    for method in methods:
        if method not in METHODS:
            raise InputError(unknown("--only: unknown method", method, list(METHODS)))
    try:
        budgets = sorted({float(m) for m in args.macs.split(",")}, reverse=True)
    except ValueError:
        raise InputError(f"--macs {args.macs}: not numbers; give fractions such as 0.8,0.6,0.4") from None
    if not all(0 < m < 1 for m in budgets):
        raise InputError(f"--macs {args.macs}: each fraction must be between 0 and 1")
    outputs = {kind: args.out.with_name(f"{args.out.name}.{kind}") for kind in ("json", "md", "png")}
    for path in outputs.values():
        check_writable(path)
    source = checkpoint.load(args.weights)
    data = dataset.load(args.data, task=source.task)
    dataset.check_names(data, source.names)
    settings = finetune.TrainingSettings(
        epochs=args.epochs, batch=args.batch, lr=args.lr, imgsz=source.input_size(args.imgsz), device=args.device
    )
    work = args.work or Path("runs") / args.out.name
    job = cells.Job(source, data, settings, args.multiple, work)
    job.open()

    todo = [(m, b) for b in budgets for m in methods if m != "control"]
    todo = [("control", 1.0)] * ("control" in methods) + todo
    steps = [(cells.untrained, cell) for cell in todo]
    steps += [(cells.tuned, (*cell, seed)) for seed in range(args.seeds) for cell in todo]
    begin = time.monotonic()
    for i, (step, cell) in enumerate(steps):

        def say(what: str, i=i, cell=cell) -> None:
            minutes = (time.monotonic() - begin) / 60
            print(f"[{minutes:6.1f} min] {i + 1}/{len(steps)} {cells.name(*cell[:2])}: {what}", flush=True)

        step(job, *cell, say)
    write(job, outputs)


def write(job: cells.Job, outputs: dict[str, Path]) -> None:
    result = results.collect(job)
    table = results.table(result)
    write_atomic(outputs["json"], json.dumps(result, indent=1) + "\n")
    write_atomic(outputs["md"], table)
    plot.draw(result, outputs["png"])
    print(table)


if __name__ == "__main__":
    try:
        main(arguments())
    except EdgepruneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
