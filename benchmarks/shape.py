"""A rectangular input against a square one: mAP, with the interval of the difference, and inference time.

    python -m benchmarks.shape --weights best.pt --data data.yaml --imgsz auto:512
    python -m benchmarks.shape --scenes 200 --imgsz 192,320 --out benchmarks/results/shape-16x9

The same weights run at both sizes; nothing is trained. The square's side is the longer side of the rectangle. With
--scenes in place of --data, the images are the middle 16:9 of scenes of the built-in demo, and the weights its
detector. Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from edgeprune_device import clock
from edgeprune_device.files import write_atomic
from edgeprune_device.machine.environment import Environment
from edgeprune_device.size import InputSize, Size
from edgeprune_device.vision.accuracy import Matches
from PIL import Image

from edgeprune.data import dataset
from edgeprune.demo import NAMES, WEIGHTS, render
from edgeprune.demo.dataset import VAL_SEED
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.measuring.accuracy import bootstrap, evaluate
from edgeprune.measuring.sessions import TorchSession
from edgeprune.measuring.timing import time_models
from edgeprune.model import checkpoint, threads
from edgeprune.model.count import count

#: The demo's square scenes, px, and the part that the crop keeps.
SCENE, TOP, BOTTOM = 640, 140, 500
#: A box that the crop cuts is kept with this share of its height, as in a camera that never saw the rest.
VISIBLE = 0.5


def wide_scenes(folder: Path, count: int) -> Path:
    """Write scenes of 640 x 360 px, none of which was used for training, as a data set; return its data.yaml."""
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
    low, high = TOP / SCENE, BOTTOM / SCENE
    for i in range(count):
        picture, boxes = render(VAL_SEED + i, SCENE)
        kind, cx, cy, w, h = boxes.T
        top, bottom = (cy - h / 2).clip(low, high), (cy + h / 2).clip(low, high)
        seen = bottom - top > VISIBLE * h
        cut = np.stack([kind, cx, ((top + bottom) / 2 - low) / (high - low), w, (bottom - top) / (high - low)], 1)[seen]
        split = "train" if i == 0 else "val"
        Image.fromarray(picture[TOP:BOTTOM]).save(folder / "images" / split / f"{i}.png")
        lines = (" ".join([str(int(c)), *(f"{value:.6f}" for value in box)]) for c, *box in cut.tolist())
        (folder / "labels" / split / f"{i}.txt").write_text("\n".join(lines) + "\n")
    names = dict(enumerate(NAMES))
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {names}\n")
    return folder / "data.yaml"


def main() -> None:
    """Read the arguments, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    sets = parser.add_mutually_exclusive_group(required=True)
    sets.add_argument("--data", type=Path)
    sets.add_argument("--scenes", type=int)
    parser.add_argument("--imgsz", required=True, help="HEIGHT,WIDTH or auto:N")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "shape", help="without suffix")
    args = parser.parse_args()
    threads.use_all_cores()
    with tempfile.TemporaryDirectory() as folder:
        measure(args, args.data or wide_scenes(Path(folder), args.scenes))


def measure(args: argparse.Namespace, data: Path) -> None:
    """Measure both sizes on the validation images of a data.yaml, and write the results."""
    source = checkpoint.load(args.weights)
    images = dataset.load(data, task=source.task)
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
        "weights": args.weights.name, "data": "scenes of 640 x 360 px" if args.scenes else data.parent.name,
        "images": len(images.val), "area": area,
        "difference": difference, "models": rows, "cpu": here.cpu, "created": clock.wall(),
    }  # fmt: skip
    write_atomic(args.out.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
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
    write_atomic(args.out.with_suffix(".md"), "\n".join(lines))


if __name__ == "__main__":
    main()
