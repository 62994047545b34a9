"""The measurements of a file: mAP on unseen images, latency, and acceptance by the parser of TensorRT for RTX."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from edgeprune_device import runtimes
from edgeprune_device.errors import GateError
from edgeprune_device.size import Size
from edgeprune_device.vision import accuracy, evaluation, preprocess
from edgeprune_device.vision.accuracy import Matches

from benchmarks.precision.files import File, OpenVino
from edgeprune.data.dataset import Dataset
from edgeprune.exporting import tensorrt
from edgeprune.measuring.accuracy import true_boxes

ROUNDS, WARMUP = 60, 8


@dataclass
class Judged:
    """Detections and ground truth per image, for one kind of file over all data sets."""

    detections: list[np.ndarray] = field(default_factory=list)
    truths: list[np.ndarray] = field(default_factory=list)

    @property
    def boxes(self) -> int:
        return int(sum(len(t) for t in self.truths))

    def matches(self, classes: list[str]) -> Matches:
        return accuracy.match(self.detections, self.truths, classes)


def add(judged: Judged, file: File, data: Dataset, size: Size) -> None:
    items = [(p.name, str(p), true_boxes(data, p)) for p in data.val]
    _, detections = evaluation.evaluate(file.open(), items, imgsz=size, classes=list(data.names))
    judged.detections += detections
    judged.truths += [truth for _, _, truth in items]


def parity(expected: File, actual: File, data: Dataset, size: Size, conf: float = 0.25) -> dict:
    """The differences of the outputs above `conf`, anchor by anchor. After NMS, one of two nearly equal boxes may
    win in one file and the other one in the other file, which is not a numerical difference.
    """
    a, b = expected.open(), actual.open()
    boxes, scores = [], []
    for picture in data.val:
        x, _ = preprocess.letterbox(preprocess.decode(picture), size)
        one, other = a.infer(x)[0][0], b.infer(x)[0][0]
        chosen = one[4:].max(0) >= conf
        difference = np.abs(one[:, chosen] - other[:, chosen])
        boxes += difference[:4].max(0).tolist()
        scores += difference[4:].max(0).tolist()
    return {
        "anchors": len(boxes), "max_box_px": max(boxes), "p999_box_px": float(np.percentile(boxes, 99.9)),
        "max_score": max(scores), "p999_score": float(np.percentile(scores, 99.9)),
    }  # fmt: skip


def latency(files: dict[str, File], size: Size) -> dict[str, dict]:
    """The p50 in ms, and how many times as fast as FP32 (median of pairs); measured alternately, one thread."""
    one = runtimes.RuntimeSettings(threads=1)
    sessions = {n: runtimes.open(f.path, "ort", one) for n, f in files.items() if f.path and f.timed}
    for name, file in files.items():
        if file.runtime == "OpenVINO":
            sessions[name] = OpenVino(file.open().folder, threads=1)
    x = np.random.default_rng(0).random((1, 3, *size), dtype=np.float32)
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
    """Parse and build for SM86 with TensorRT for RTX: the seconds, or the reason of the failure."""
    try:
        built = tensorrt.build(file.path, "SM86")
    except GateError as error:
        return {"seconds": None, "reason": str(error)}
    seconds = None if built.reason else built.parse_seconds + built.build_seconds
    return {"seconds": seconds, "reason": built.reason}
