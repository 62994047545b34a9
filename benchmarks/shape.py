"""A rectangular input against a square one: mAP, with the interval of the difference, and inference time.

    python -m benchmarks.shape --weights best.pt --data data.yaml --imgsz auto:512

The same weights run at both sizes; nothing is trained. The square's side is the longer side of the rectangle. Writes
benchmarks/results/shape.{json,md}.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edgeprune_device import clock
from edgeprune_device.files import write_atomic
from edgeprune_device.machine.environment import Environment
from edgeprune_device.size import InputSize, Size
from edgeprune_device.vision.accuracy import Matches

from edgeprune.data import dataset
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.measuring.accuracy import bootstrap, evaluate
from edgeprune.measuring.sessions import TorchSession
from edgeprune.measuring.timing import time_models
from edgeprune.model import checkpoint, threads
from edgeprune.model.count import count

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure both sizes and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--imgsz", required=True, help="HEIGHT,WIDTH or auto:N")
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    threads.use_all_cores()
    source = checkpoint.load(args.weights)
    images = dataset.load(args.data, task=source.task)
    rectangle = source.input_size(InputSize().check(args.imgsz), print, shapes=images.shapes)
    square = Size.of(max(rectangle))
    matches: dict[Size, Matches] = {}
    rows: list[dict[str, Any]] = []
    for size in (square, rectangle):
        accuracy, matches[size] = evaluate(TorchSession(source.model, size), images, images.val, size)
        rows.append({"imgsz": list(size), "macs": count(source.model, size).macs, "map50_95": accuracy.map50_95})
    timed = time_models({str(s): to_onnx(source.model, s).SerializeToString() for s in matches}, rounds=args.rounds)
    for row, timing in zip(rows, timed.values()):
        row.update(timing.to_json()["latency_ms"])
        del row["samples"]
    difference = bootstrap(matches[rectangle], matches[square], lambda accuracy: accuracy.map50_95)
    area = square.area / rectangle.area
    here = Environment.read()
    result = {
        "weights": args.weights.name, "data": str(args.data.parent.name), "images": len(images.val), "area": area,
        "difference": difference, "models": rows, "cpu": here.cpu, "created": clock.wall(),
    }  # fmt: skip
    write_atomic(RESULTS / "shape.json", json.dumps(result, indent=1) + "\n")
    lines = [
        f"# {rectangle.height} x {rectangle.width} px against {square} x {square} px", "",
        f"`python -m benchmarks.shape`: {args.weights.name} on {len(images.val)} validation images of "
        f"{result['data']}; the same weights at both sizes, without training. {here.cpu}, {rows[0]['runtime']}, "
        f"{args.rounds} rounds, measured alternately.", "",
        "| input | MACs | mAP50-95 | inference, median ms | as fast as the square |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {row['imgsz'][0]} x {row['imgsz'][1]} | {row['macs'] / 1e9:.2f} G | {row['map50_95']:.4f} | "
          f"{row['p50']:.1f} | {row['speedup']:.2f}x |" for row in rows), "",
        f"The square has {area:.2f} times the area. mAP50-95 differs by {difference[0]:+.4f} (95 % interval "
        f"{difference[1]:+.4f} to {difference[2]:+.4f}).", "",
    ]  # fmt: skip
    write_atomic(RESULTS / "shape.md", "\n".join(lines))


if __name__ == "__main__":
    main()
