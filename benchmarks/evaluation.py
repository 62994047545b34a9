"""Compares the evaluation of a .pt file with `yolo val` of the same file: speed, peak memory, and both mAPs.

    python -m benchmarks.evaluation --weights yolov8n.pt --data coco128.yaml

Both evaluate the same images at the same square size, one image at a time, without plots, on the CPU, in separate
processes, alternately. edgeprune runs one process per core; Ultralytics uses its own number of threads and two data
loading processes. The two mAPs follow different conventions (interpolation, maxDets, NMS), so they are never compared.
Run it on an otherwise idle machine. Writes benchmarks/results/evaluation.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgeprune_device import clock
from edgeprune_device.files import write_atomic
from edgeprune_device.machine.environment import Environment

from edgeprune import versions

RESULTS = Path(__file__).parent / "results"
_OURS = """
import json, resource, sys, time
from pathlib import Path
import edgeprune
from edgeprune.data import dataset
from edgeprune.measuring.accuracy import evaluate
from edgeprune.measuring.sessions import TorchSession
from edgeprune.model import checkpoint, threads
weights, data, size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
threads.use_all_cores()
source = checkpoint.load(weights)
model, images = source.model, dataset.load(data, task=source.task)
start = time.monotonic()
accuracy, _ = evaluate(TorchSession(model, size), images, images.val, size)
result = len(images.val), time.monotonic() - start, accuracy.map50_95
"""
_THEIRS = """
import json, resource, sys, time
from ultralytics import YOLO
weights, data, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = YOLO(weights)
start = time.monotonic()
metrics = model.val(data=data, imgsz=size, batch=1, rect=False, plots=False, verbose=False, workers=2, device="cpu",
                    project=sys.argv[4])
result = None, time.monotonic() - start, metrics.box.map
"""
_END = """
usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([*result, *usage]))
"""


def main() -> None:
    """Measure, write the results, and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, required=True, help="a detector (.pt)")
    parser.add_argument("--data", type=Path, required=True, help="its data.yaml; the images of val are evaluated")
    parser.add_argument("--imgsz", type=int, default=640, help="network input, px (default 640)")
    parser.add_argument("--rounds", type=int, default=3, help="turns (default 3)")
    args = parser.parse_args()
    before = os.getloadavg()
    rows: dict[str, list[dict[str, Any]]] = {"edgeprune": [], "yolo val": []}
    images = 0
    for _ in range(args.rounds):
        for name, program in (("edgeprune", _OURS), ("yolo val", _THEIRS)):
            count, seconds, map50_95, own, child = _run(program + _END, args)
            images = count or images
            rows[name].append({
                "seconds": seconds, "images_per_second": images / seconds, "map50_95": map50_95,
                "peak_mb": own / 1e3, "largest_child_mb": child / 1e3,
            })  # fmt: skip
    results = {
        "schema_version": 1, "created": clock.wall(), "machine": Environment.read().to_json(),
        "packages": versions.of_packages(), "cores": len(os.sched_getaffinity(0)), "load_average": [*before],
        "weights": args.weights.name, "data": args.data.name, "images": images, "imgsz": args.imgsz, "rounds": rows,
    }  # fmt: skip
    text = page(results)
    write_atomic(RESULTS / "evaluation.json", json.dumps(results, indent=1) + "\n")
    write_atomic(RESULTS / "evaluation.md", text)
    print(text)


def _run(program: str, args: argparse.Namespace) -> Any:
    words = [str(args.weights), str(args.data), str(args.imgsz), "/tmp"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    ours, theirs = (results["rounds"][name] for name in ("edgeprune", "yolo val"))
    ratios = [a["images_per_second"] / b["images_per_second"] for a, b in zip(ours, theirs, strict=True)]
    lines = [
        f"# Evaluation of {results['weights']} on {results['images']} images, {results['imgsz']} px",
        "",
        f"{results['machine']['cpu']}, {results['cores']} cores, load average before {results['load_average'][0]:.1f}, "
        f"{results['created']}. In turns; medians of {len(ours)} rounds.",
        "",
        f"edgeprune is {statistics.median(ratios):.2f}x as fast ({min(ratios):.2f} to {max(ratios):.2f}).",
        "",
        "| | images a second | peak memory, MB | largest child, MB | mAP50-95 by its own convention |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, rounds in (("edgeprune", ours), ("`yolo val`, rect=False, batch=1", theirs)):
        middle = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        lines.append(
            f"| {name} | {middle['images_per_second']:.2f} | {middle['peak_mb']:.0f} | "
            f"{middle['largest_child_mb']:.0f} | {middle['map50_95']:.4f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
