"""Compares precisions on the same model, images and machine, in one run:

    pip install -r benchmarks/precision/requirements.txt
    python -m benchmarks.precision --weights best.pt --data data.yaml --out benchmarks/results/hituav-precision

Ours: FP16, INT8 and INT8-FP16 for target jetson-orin (computed as written), INT8 for target cpu (as executed). Others:
ONNX Runtime's `quantize_static` with its defaults, Ultralytics' INT8 exports to ONNX and OpenVINO. All are calibrated
with the same training images; ours selects method and layers on other training images; the same evaluator measures
every mAP on the validation images. With --halves, for a set without training images, the validation images are split in
two, files are made with each half and evaluated on the other, and the detections are combined.

Latency is measured alternately with ONNX Runtime, one thread (OpenVINO: its own runtime, alternately with FP32).
The ONNX parser and builder of TensorRT for RTX check each file for SM86. Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import onnxruntime
import torch
from edgeprune_device.files import check_writable, write_atomic
from edgeprune_device.machine.environment import Environment

from benchmarks.precision import files, judge, table
from edgeprune.data import dataset
from edgeprune.data.dataset import Dataset
from edgeprune.measuring.accuracy import bootstrap
from edgeprune.model import checkpoint


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--weights", type=Path, required=True)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument(
        "--halves", action="store_true", help="make files with one half of the images, evaluate on the other"
    )
    p.add_argument("--imgsz", type=int)
    p.add_argument("--max-drop", type=float, default=0.003)
    p.add_argument("--no-peers", action="store_true")
    p.add_argument("--out", type=Path, required=True, help="without suffix")
    args = p.parse_args()
    check_writable(args.out.with_suffix(".json"))
    source = checkpoint.load(args.weights)
    size = source.input_size(args.imgsz)
    judged: dict[str, judge.Judged] = {}
    records = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, data) in enumerate(parts(dataset.load(args.data), args.halves).items()):
            work = Path(folder) / str(i)
            work.mkdir()
            made = files.make(source, args.weights, data, size, args.max_drop, work, peers=not args.no_peers)
            records[name] = made.record
            for label, file in made.files.items():
                print(f"{name}: {label}", flush=True)
                judge.add(judged.setdefault(label, judge.Judged()), file, data, size)
        parity = judge.parity(made.files["fp32"], made.files["ours fp16"], data, size)
        timed = judge.latency(made.files, size)  # the last data set's files; their content does not matter
        parsed = {name: judge.nvidia(file) for name, file in made.files.items() if file.path is not None}
    classes = list(source.names)
    matches = {name: j.matches(classes) for name, j in judged.items()}
    rows = []
    for name in matches:
        minus = {}
        for other in ("fp32", "ours fp16"):
            minus[other] = bootstrap(matches[name], matches[other], lambda a: a.map50_95, samples=500)
        accuracy = matches[name].accuracy()
        rows.append({
            "name": name, "map50_95": accuracy.map50_95, "map50": accuracy.map50,
            "small_map50_95": accuracy.small_map50_95, "minus": minus, "latency_ms": timed.get(name),
            "nvidia": parsed.get(name), "runtime": made.files[name].runtime,
        })  # fmt: skip
    machine = Environment.read()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    result = {
        "weights": args.weights.name, "data": args.data.parent.name, "imgsz": size.to_json(),
        "pictures": matches["fp32"].pictures, "boxes": judged["fp32"].boxes, "max_drop": args.max_drop, "made": records,
        "machine": f"{machine.cpu}, {', '.join(machine.cpu_features)}, {torch.get_num_threads()} threads",
        "versions": {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__,
                     "python": platform.python_version(), **files.versions()},
        "commit": commit.stdout.strip(),
        "fp16_parity": parity, "rows": rows,
    }  # fmt: skip
    write_atomic(args.out.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    write_atomic(args.out.with_suffix(".md"), table.of(result))
    print(table.of(result))


def parts(data: Dataset, halves: bool) -> dict[str, Dataset]:
    """Name -> the images to make files with (train) and to evaluate on (val)."""
    if not halves:
        return {"made with the training split": data}
    middle = len(data.val) // 2
    first, second = data.val[:middle], data.val[middle:]
    return {
        "made with the first half": replace(data, train=first, val=second),
        "made with the second half": replace(data, train=second, val=first),
    }


if __name__ == "__main__":
    main()
