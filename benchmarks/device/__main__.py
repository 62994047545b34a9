"""Compares pre- and post-processing with Ultralytics', on the same frames, outputs, thresholds and thread:

    pip install -r benchmarks/device/requirements.txt
    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.device --out benchmarks/results/device

Pre-processing: a decoded frame -> letterbox -> (1, 3, h, w) float32, or (1, h, w, 3) uint8 for a device variant.
Post-processing: raw output, or the best anchors of a device variant -> decode, NMS -> boxes in frame px. Image decoding
and inference are not timed. The outputs come from YOLOv8n in ONNX Runtime on HIT-UAV (4 classes) and COCO (80),
selected or combined so that exactly 0, 10 and 300 boxes survive (outputs.py); the frames are these images at the
frame's size, four in turn. Each round runs all implementations in changing order and compares their times: the factor
is the median over rounds, its spread the 5 % and 95 % quantiles. The results are compared before any timing; a
difference ends the benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
import ultralytics
from edgeprune_device.files import check_writable, write_atomic
from edgeprune_device.machine.environment import Environment
from edgeprune_device.vision import preprocess

from benchmarks.device import outputs, table
from benchmarks.device.ways import CONF, IOU, MAX_DET, OURS, Ours, Ultralytics

FRAMES = [(512, 640), (720, 1280), (1080, 1920)]  # height, width; px
COUNTS = [0, 10, 300]
WARMUP = 20


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--shared", type=Path, default=Path("../shared/data"), help="weights and images")
    p.add_argument("--rounds", type=int, default=300)
    p.add_argument("--out", type=Path, required=True, help="without suffix")
    args = p.parse_args()
    check_writable(args.out.with_suffix(".json"))
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    load = [os.getloadavg()[0]]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for network in outputs.NETWORKS:
            real = outputs.answers(network, args.shared, Path(folder))
            made = [outputs.exactly(count, real) for count in COUNTS]
            for shape in FRAMES:
                frames = pictures(args.shared / network.pictures, shape)
                for output in made:
                    timed = measure(network.size, frames, output.output, args.rounds)
                    row = {
                        "network": network.name, "size": network.size, "classes": output.output.shape[1] - 4,
                        "frame": list(shape), "detections": output.detections, "candidates": output.candidates,
                        "output": output.how, **timed,
                    }  # fmt: skip
                    rows.append(row)
                    print(table.line(row), flush=True)
    load.append(os.getloadavg()[0])
    machine = Environment.read()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    result = {
        "machine": f"{machine.cpu}, {', '.join(machine.cpu_features)}",
        "cpus": sorted(os.sched_getaffinity(0)), "load_average": load, "rounds": args.rounds,
        "thresholds": {"conf": CONF, "iou": IOU, "max_det": MAX_DET},
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "opencv": cv2.__version__,
                     "ultralytics": ultralytics.__version__, "torch": torch.__version__,
                     "torchvision": torchvision.__version__},
        "commit": commit.stdout.strip(), "rows": rows,
    }  # fmt: skip
    write_atomic(args.out.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    write_atomic(args.out.with_suffix(".md"), table.of(result))
    print(table.of(result))


def pictures(folder: Path, shape: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Four frames, each in RGB and in BGR."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".png"))[:4]
    frames = []
    for path in paths:
        rgb = preprocess.decode(path)
        if rgb.shape[:2] != shape:
            rgb = cv2.resize(rgb, shape[::-1])
        frames.append((rgb, np.ascontiguousarray(rgb[:, :, ::-1])))
    return frames


def measure(size: int, frames: list, output: np.ndarray, rounds: int) -> dict:
    """The microseconds of each implementation, and how many times as fast as Ultralytics ours are."""
    ways = [Ultralytics(size), *(Ours(size, name) for name in OURS)]
    for way in ways:
        way.prepare(output)
    agree(ways, frames, output)
    took = np.zeros((len(ways), 2, rounds))  # ns; before and after inference
    for i in range(-WARMUP, rounds):
        rgb, bgr = frames[i % len(frames)]
        for k in range(len(ways)):
            k = (k + i) % len(ways)
            way = ways[k]
            way.use()
            begin = time.perf_counter_ns()
            way.pre(rgb, bgr)
            middle = time.perf_counter_ns()
            way.post(output)
            end = time.perf_counter_ns()
            if i >= 0:
                took[k, :, i] = middle - begin, end - middle
    both = took.sum(axis=1)
    result = {"pre_us": {}, "post_us": {}, "pre_factor": {}, "post_factor": {}, "factor": {}, "factor_5_95": {}}
    for way, ns, total in zip(ways, took, both):
        result["pre_us"][way.name], result["post_us"][way.name] = (round(t / 1e3, 1) for t in np.median(ns, axis=1))
        if way is not ways[0]:
            pre, post = (round(t, 2) for t in np.median(took[0] / ns, axis=1))
            result["pre_factor"][way.name], result["post_factor"][way.name] = pre, post
            result["factor"][way.name] = round(float(np.median(both[0] / total)), 2)
            result["factor_5_95"][way.name] = np.percentile(both[0] / total, [5, 95]).round(2).tolist()
    return result


def agree(ways: list, frames: list, output: np.ndarray) -> None:
    """Check for equal network inputs, bit by bit (without OpenCV: within one level of 255), and equal boxes."""
    for rgb, bgr in frames:
        answers = []
        for way in ways:
            way.use()
            answers.append((way.floats(way.pre(rgb, bgr)).copy(), way.post(output)))
        (x, boxes), *others = answers
        for way, (other_x, other_boxes) in zip(ways[1:], others):
            levels = np.abs(x - other_x).max() * 255
            assert levels <= (1.001 if "without OpenCV" in way.name else 0), (
                f"{way.name}: the input differs by {levels} levels"
            )
            assert boxes.shape == other_boxes.shape, f"{way.name}: different boxes"
            assert np.abs(boxes - other_boxes).max(initial=0) < 1e-3, f"{way.name}: different boxes"


if __name__ == "__main__":
    main()
