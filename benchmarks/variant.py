"""The device variant against the stock file: bytes of a frame, and the time of each stage on this CPU, in turns.

    python -m benchmarks.variant --weights best.pt --images FOLDER [--runtime openvino] [--imgsz 640]

Each image is tiled to four frame sizes. Each round runs one frame through both files, one after the other, and begins
with the other file than the round before. Writes benchmarks/results/variant-RUNTIME.{json,md}.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from edgeprune_device import clock, runtimes
from edgeprune_device.files import write_atomic
from edgeprune_device.machine.environment import Environment
from edgeprune_device.output import BEST
from edgeprune_device.vision import preprocess, tasks
from edgeprune_device.vision.postprocess import CONF

from edgeprune.exporting import device_variant
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.measuring.sessions import OnnxSession
from edgeprune.model import checkpoint

RESULTS = Path(__file__).parent / "results"
#: (height, width) of the frames, px.
FRAMES = ((640, 640), (720, 1280), (750, 1000), (1080, 1920))
STAGES = ("pre", "infer", "post")


def main() -> None:
    """Measure both files and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--runtime", choices=("ort", "openvino"), default="ort")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    source = checkpoint.load(args.weights)
    stock = to_onnx(source.model, (args.imgsz, args.imgsz))
    models = {"stock": stock, "variant": device_variant.of(stock)}
    pictures = [preprocess.decode(path) for path in sorted(args.images.glob("*.jpg"))[:6]]
    names, task = source.names, tasks.get(source.task)
    passes: dict[str, Callable[[npt.NDArray[np.uint8]], tuple[list[float], Any]]] = {}
    sizes: dict[str, dict[str, int]] = {}
    for name, model in models.items():
        described = OnnxSession(model)
        session = runtimes.open(model.SerializeToString(), args.runtime, runtimes.RuntimeSettings(threads=1))
        prepare = preprocess.Preprocessor(args.imgsz, described.layout)

        def one(frame: Any, session: Any = session, prepare: Any = prepare, kind: str = described.kind) -> Any:
            ends = [time.perf_counter()]
            x, box = prepare(frame)
            ends.append(time.perf_counter())
            outputs = session.infer(x)
            ends.append(time.perf_counter())
            rows = task.undo(task.detections(outputs, kind, classes=len(names), conf=CONF), box)
            ends.append(time.perf_counter())
            return [1e3 * (b - a) for a, b in itertools.pairwise(ends)], rows

        passes[name] = one
        x, _ = prepare(pictures[0])
        outputs = session.infer(x)
        copied = outputs[:2] if described.kind == BEST else outputs
        sizes[name] = {"in": x.nbytes, "out": sum(output.nbytes for output in copied)}
    table = [_measured(passes, pictures, shape, args.rounds) for shape in FRAMES]
    result = {
        "weights": args.weights.name, "imgsz": args.imgsz, "runtime": session.description, "bytes": sizes,
        "frames": table, "cpu": Environment.read().cpu, "opencv": preprocess.uses_opencv(), "created": clock.wall(),
    }  # fmt: skip
    name = f"variant-{args.runtime}{'' if preprocess.uses_opencv() else '-numpy'}"
    write_atomic(RESULTS / f"{name}.json", json.dumps(result, indent=1) + "\n")
    write_atomic(RESULTS / f"{name}.md", _page(result, args.rounds))


def _measured(passes: Any, pictures: Any, shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    """The median times of both files on frames of one shape, and the ratios of the rounds."""
    frames = [np.ascontiguousarray(np.tile(p, (9, 9, 1))[: shape[0], : shape[1]]) for p in pictures]
    taken: dict[str, list[list[float]]] = {name: [] for name in passes}
    equal = True
    for i in range(-3, rounds):
        rows = {}
        for name in list(passes)[:: 1 if i % 2 else -1]:
            times, rows[name] = passes[name](frames[i % len(frames)])
            if i >= 0:
                taken[name].append(times)
        equal &= np.array_equal(rows["stock"], rows["variant"])
    medians = {n: {s: statistics.median(column) for s, column in zip(STAGES, zip(*t))} for n, t in taken.items()}
    around = [(a[0] + a[2]) / (b[0] + b[2]) for a, b in zip(taken["stock"], taken["variant"])]
    whole = [sum(a) / sum(b) for a, b in zip(taken["stock"], taken["variant"])]
    return {
        "frame": list(shape), "medians_ms": medians, "equal": bool(equal),
        "pre_post_ratio": statistics.median(around), "whole_ratio": statistics.median(whole),
        "whole_quartiles": [float(q) for q in np.percentile(whole, [25, 75])],
    }  # fmt: skip


def _page(result: dict[str, Any], rounds: int) -> str:
    """The results as Markdown."""
    size, lines = result["bytes"], []
    for row in result["frames"]:
        a, b = row["medians_ms"]["stock"], row["medians_ms"]["variant"]
        times = " | ".join(f"{a[stage]:.2f} / {b[stage]:.2f}" for stage in STAGES)
        low, high = row["whole_quartiles"]
        lines.append(
            f"| {row['frame'][1]} x {row['frame'][0]} | {times} | {row['pre_post_ratio']:.2f}x | "
            f"{row['whole_ratio']:.3f}x ({low:.3f} to {high:.3f}) | {'equal' if row['equal'] else 'not equal'} |"
        )
    return "\n".join([
        f"# The device variant on a CPU ({result['runtime']})", "",
        f"`python -m benchmarks.variant`: {result['weights']} at {result['imgsz']} px, {result['cpu']}, "
        f"{'with' if result['opencv'] else 'without'} OpenCV, {rounds} rounds in turns, medians in ms, stock file / "
        "variant. A ratio above 1 means that the variant is faster.", "",
        f"Bytes of a frame: {size['stock']['in']:,} in and {size['stock']['out']:,} out for the stock file, "
        f"{size['variant']['in']:,} in and {size['variant']['out']:,} out for the variant, unless it needs the raw "
        "output.", "",
        "| frame | pre | infer | post | pre + post | all stages (quartiles) | detections |",
        "| --- | --- | --- | --- | --- | --- | --- |", *lines, "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
