"""Measures the accuracy drop of pruning after fine-tuning, against the original fine-tuned in the same way.

    python benchmarks/recovery.py --weights best.pt --data data.yaml --out runs/recovery --ratios 0.1,0.2,0.3

With --macs in place of --ratios, the budgets are shares of the MACs that are kept. It runs `edgeprune build` once per
budget and `edgeprune finetune` once on the original, all with the same epochs, batch and learning rate (or uses
existing results in --out). Then it measures every checkpoint, FP16 file and INT8 file with the same evaluator over the
classes that have at least 30 validation boxes, with a paired bootstrap interval over images. It writes recovery.json
and recovery.md to --out.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from edgeprune_device.files import write_atomic
from edgeprune_device.target import Target

from edgeprune.data import dataset
from edgeprune.exporting import precisions
from edgeprune.measuring.accuracy import bootstrap, evaluate
from edgeprune.measuring.sessions import TorchSession
from edgeprune.model import checkpoint
from edgeprune.model.count import count

MIN_BOXES = 30
TARGET = "jetson-orin"


def run(*words) -> None:
    subprocess.run([sys.executable, "-m", "edgeprune", *map(str, words)], check=True)


def mean_ap(accuracy) -> float:
    """mAP50-95 over the classes with enough boxes in the whole set."""
    return float(np.mean([c.map50_95 or 0.0 for c in accuracy.per_class if c.index in mean_ap.classes]))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--weights", type=Path, required=True)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    budgets = p.add_mutually_exclusive_group()
    budgets.add_argument("--ratios", default="0.1,0.2,0.3")
    budgets.add_argument("--macs")
    p.add_argument("--imgsz", type=int, help="default: the size of the training")
    p.add_argument("--epochs", default="10")
    p.add_argument("--max-drop", default="0.02", help="a wide limit, because the precision gate is not measured here")
    args = p.parse_args()
    same = ["--weights", args.weights, "--data", args.data, "--epochs", args.epochs]
    same += ["--imgsz", args.imgsz] if args.imgsz else []
    kind = "macs" if args.macs else "ratio"
    args.folders = {f"{kind} {value}": args.out / f"{kind}-{value}" for value in (args.macs or args.ratios).split(",")}
    control = args.out / "control.pt"
    args.out.mkdir(parents=True, exist_ok=True)
    if not control.exists():
        run("finetune", *same, "--out", control)
    for budget, folder in args.folders.items():
        words = ["build", *same, f"--{kind}", budget.split()[1], "--target", TARGET, "--max-drop", args.max_drop]
        if not list(folder.glob("*.epb")):
            run(*words, "--out", folder, *(["--resume"] if (folder / "build.json").exists() else []))
    write(args, control)


def write(args, control: Path) -> None:
    source = checkpoint.load(args.weights)
    data = dataset.load(args.data, task=source.task)
    boxes = data.boxes(data.val)
    mean_ap.classes = {i for i, n in enumerate(boxes) if n >= MIN_BOXES}
    size = source.input_size(args.imgsz)
    files = {"original": args.weights, "control": control}
    for budget, folder in args.folders.items():
        files |= {f"{budget} {model}": folder / f"{model}.pt" for model in ("pruned", "tuned")}
        files |= {f"{budget} {precision}": folder / f"model.{precision}.onnx" for precision in ("fp16", "int8")}
    matches, costs = {}, {}
    for name, path in files.items():
        onnx_file = path.suffix == ".onnx"
        model = checkpoint.load(path.parent / "tuned.pt" if onnx_file else path).model
        costs[name] = count(model, tuple(size))
        session = TorchSession(model, size)
        if onnx_file:
            session = precisions.session(Target.load(TARGET), name.split()[-1], onnx.load(path))
        _, matches[name] = evaluate(session, data, data.val, size)
    rows = []
    for name in files:
        row = {"model": name, **costs[name].to_json(), "map50_95": mean_ap(matches[name].accuracy())}
        for other in ("original", "control"):
            row[f"minus_{other}"] = bootstrap(matches[name], matches[other], mean_ap)
        rows.append(row)
    result = {
        "weights": args.weights.name, "data": f"{args.data.parent.name}/{args.data.name}", "imgsz": str(size),
        "epochs": int(args.epochs),
        "classes": [data.names[i] for i in sorted(mean_ap.classes)], "pictures": len(data.val),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}", "rows": rows,
    }  # fmt: skip
    write_atomic(args.out / "recovery.json", json.dumps(result, indent=1) + "\n")
    write_atomic(args.out / "recovery.md", table(result))
    print(table(result))


def table(result: dict) -> str:
    def signed(triple):
        return f"{100 * triple[0]:+.2f} ({100 * triple[1]:+.2f} … {100 * triple[2]:+.2f})"

    full = result["rows"][0]
    lines = [
        f"# Recovery of {result['weights']}",
        "",
        f"{result['imgsz']} px, {result['epochs']} epochs of fine-tuning. mAP50-95 is in points on "
        f"{result['pictures']} validation images, over the classes with at least {MIN_BOXES} boxes: "
        f"{', '.join(result['classes'])}. Differences have the 95 % interval of a paired bootstrap over images in "
        f"brackets. {result['machine']}.",
        "",
        "| model | parameters | MACs | mAP50-95 | difference to the original | difference to the control |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        shares = [f"{row[k] / full[k]:.1%}" for k in ("parameters", "macs")]
        cells = [row["model"], *shares, f"{100 * row['map50_95']:.2f}"]
        lines.append(f"| {' | '.join([*cells, signed(row['minus_original']), signed(row['minus_control'])])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
