"""What is measured of a file: mAP on pictures it has not seen, time, whether NVIDIA's parser takes it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from edgeprune_device import accuracy, evaluation, runtimes
from edgeprune_device.accuracy import Matches
from edgeprune_device.errors import GateError

from benchmarks.precision.files import File, OpenVino
from edgeprune import engine, measure
from edgeprune.dataset import Dataset

ROUNDS, WARMUP = 60, 8


@dataclass
class Judged:
    """Detections and truths, picture by picture, of one kind of file over all data sets."""

    found: list[np.ndarray] = field(default_factory=list)
    truths: list[np.ndarray] = field(default_factory=list)

    @property
    def boxes(self) -> int:
        return int(sum(len(t) for t in self.truths))

    def matches(self, classes: list[str]) -> Matches:
        return accuracy.match(self.found, self.truths, classes)


def add(judged: Judged, file: File, data: Dataset, size: int) -> None:
    items = [(p.name, str(p), measure.truth(data, p)) for p in data.val]
    _, found = evaluation.evaluate(file.open(), items, imgsz=size, classes=list(data.names))
    judged.found += found
    judged.truths += [truth for _, _, truth in items]


def parity(expected: Judged, actual: Judged, conf: float = 0.25) -> dict:
    """How far detections of at least `conf` are from FP32's: pairs of one class with IoU of at least 0.5."""
    boxes, scores, total, missing = [], [], 0, 0
    for a, b in zip(expected.found, actual.found):
        a = a[a[:, 4] >= conf]
        total += len(a)
        for row in a:
            near = b[b[:, 5] == row[5]]
            low, high = np.maximum(near[:, :2], row[:2]), np.minimum(near[:, 2:4], row[2:4])
            both = np.clip(high - low, 0, None).prod(1)
            area = (near[:, 2:4] - near[:, :2]).prod(1) + (row[2:4] - row[:2]).prod() - both
            overlap = both / np.maximum(area, 1e-9)
            if not len(near) or overlap.max() < 0.5:
                missing += 1
                continue
            partner = near[overlap.argmax()]
            boxes.append(np.abs(partner[:4] - row[:4]).max())
            scores.append(abs(partner[4] - row[4]))
    return {
        "detections": total, "without_partner": missing, "max_box_px": float(np.max(boxes, initial=0)),
        "p99_box_px": float(np.percentile(boxes, 99)), "max_score": float(np.max(scores, initial=0)),
    }  # fmt: skip


def latency(files: dict[str, File], size: int) -> dict[str, dict]:
    """ms p50, and how many times as fast as FP32: median of pairs, all in turns, one thread."""
    sessions = {n: runtimes.open(f.path, "ort", runtimes.Settings(1)) for n, f in files.items() if f.path and f.timed}
    for name, file in files.items():
        if file.runtime == "OpenVINO":
            sessions[name] = OpenVino(file.open().folder, threads=1)
    x = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
    times = {name: np.zeros(ROUNDS) for name in sessions}
    for i in range(-WARMUP, ROUNDS):
        for name, session in sessions.items():
            start = time.perf_counter_ns()
            session.infer(x)
            if i >= 0:
                times[name][i] = (time.perf_counter_ns() - start) / 1e6
    return {
        name: {"p50": round(float(np.median(t)), 2), "speedup": round(float(np.median(times["fp32"] / t)), 3)}
        for name, t in times.items()
    }


def nvidia(file: File) -> dict:
    """Parse and build for SM86 by TensorRT for RTX: seconds, or the reason why not."""
    try:
        built = engine.build(file.path, "SM86")
    except GateError as error:
        return {"seconds": None, "reason": str(error)}
    seconds = None if built.reason else built.parse_seconds + built.build_seconds
    return {"seconds": seconds, "reason": built.reason}
