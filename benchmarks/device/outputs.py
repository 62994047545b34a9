"""What the networks really answer, and outputs of which exactly so many boxes survive."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from edgeprune_device import runtimes, vision
from edgeprune_device.output import RAW

from benchmarks.device.ways import CONF, IOU
from edgeprune import checkpoint, exporting


class Network(NamedTuple):
    """`name` as in the table, weights and pictures below ../shared/data, input size in px."""

    name: str
    weights: str
    pictures: str
    size: int


NETWORKS = [
    *(Network("HIT-UAV", "yolov8n-hituav-best.pt", "hit-uav-mini/images", size) for size in (320, 512, 640)),
    *(Network("COCO", "yolov8n-coco-rebuilt.pt", "coco128/images", size) for size in (320, 640)),
]


class Made(NamedTuple):
    """`output` (1, 4+nc, N) with exactly `detections` boxes after NMS, of `candidates` anchors above the threshold;
    `how` says what it was made of."""

    output: np.ndarray
    detections: int
    candidates: int
    how: str


def answers(network: Network, shared: Path, folder: Path, count: int = 128) -> np.ndarray:
    """(pictures, 4+nc, N): the raw outputs of the FP32 ONNX file in ONNX Runtime on real pictures."""
    source = checkpoint.load(shared / "weights" / network.weights)
    path = folder / f"{network.name}-{network.size}.onnx"
    path.write_bytes(exporting.to_onnx(source.model, (network.size, network.size)).SerializeToString())
    session = runtimes.open(path, "ort", runtimes.Settings(1))
    paths = sorted(p for p in (shared / network.pictures).rglob("*") if p.suffix in (".jpg", ".png"))[:count]
    return np.concatenate([session.infer(vision.letterbox(vision.decode(p), network.size)[0])[0] for p in paths])


def exactly(count: int, real: np.ndarray) -> Made:
    """The real output nearest above `count` boxes; pictures laid over each other where no single one has as many.

    What is too much goes by a bar: anchors not better than the first superfluous box lose their scores. NMS goes from
    the best box down, so the boxes above the bar stay as they are.
    """
    found = [len(_boxes(output)) for output in real]
    enough = [i for i, n in enumerate(found) if n >= count]
    if enough:
        output = real[min(enough, key=lambda i: found[i])].copy()
        how = f"one picture with {min(found[i] for i in enough)}"
    else:
        output, how = _crowd(count, real)
    boxes = _boxes(output)
    if len(boxes) > count:
        output[4:, output[4:].max(axis=0) <= boxes[count, 4]] = 0
        how += f", cut to {count}"
    assert len(_boxes(output)) == count
    return Made(output[None], count, int((output[4:].max(axis=0) > CONF).sum()), how)


def _crowd(count: int, real: np.ndarray) -> tuple[np.ndarray, str]:
    """Pictures over each other, each anchor of the one that is surest there, until `count` boxes survive; if all
    together are too few, all scores are raised, a quarter logit at a time."""
    output = real[0].copy()
    for used, other in enumerate(real[1:], start=2):
        surer = other[4:].max(axis=0) > output[4:].max(axis=0)
        output[:, surer] = other[:, surer]
        if len(_boxes(output)) >= count:
            return output, f"{used} pictures over each other"
    how = f"all {len(real)} pictures over each other"
    raised = 0.0
    while len(_boxes(output)) < count:
        raised += 0.25
        scores = output[4:].clip(1e-7, 1 - 1e-7).astype(np.float64)
        output[4:] = 1 / (1 + (1 - scores) / scores * np.exp(-0.25))
    return output, f"{how}, scores raised by {raised:g} logits"


def _boxes(output: np.ndarray) -> np.ndarray:
    return vision.detections([output[None]], RAW, classes=len(output) - 4, conf=CONF, iou=IOU, max_det=30_000)
