"""Real outputs of the networks, and outputs of which an exact number of boxes survives."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from edgeprune_device import runtimes
from edgeprune_device.output import RAW
from edgeprune_device.vision import detect, preprocess

from benchmarks.device.ways import CONF, IOU
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.model import checkpoint


class Network(NamedTuple):
    """A network: its `name` in the table, its weights and images below ../shared/data, and its input size in px."""

    name: str
    weights: str
    pictures: str
    size: int


NETWORKS = [
    *(Network("HIT-UAV", "yolov8n-hituav-best.pt", "hit-uav-mini/images", size) for size in (320, 512, 640)),
    *(Network("COCO", "yolov8n-coco-rebuilt.pt", "coco128/images", size) for size in (320, 640)),
]


class Made(NamedTuple):
    """An `output` (1, 4+nc, N) with exactly `detections` boxes after NMS, from `candidates` anchors above the
    threshold; `how` describes its origin.
    """

    output: np.ndarray
    detections: int
    candidates: int
    how: str


def answers(network: Network, shared: Path, folder: Path, count: int = 128) -> np.ndarray:
    """(images, 4+nc, N): the raw outputs of the FP32 ONNX file in ONNX Runtime on real images."""
    source = checkpoint.load(shared / "weights" / network.weights)
    path = folder / f"{network.name}-{network.size}.onnx"
    path.write_bytes(to_onnx(source.model, (network.size, network.size)).SerializeToString())
    session = runtimes.open(path, "ort", runtimes.RuntimeSettings(1))
    paths = sorted(p for p in (shared / network.pictures).rglob("*") if p.suffix in (".jpg", ".png"))[:count]
    inputs = (preprocess.letterbox(preprocess.decode(path), network.size)[0] for path in paths)
    return np.concatenate([session.infer(x)[0] for x in inputs])


def exactly(count: int, real: np.ndarray) -> Made:
    """Select the real output with the fewest boxes above `count`, or combine images if no single one has enough.

    A threshold removes the excess: anchors that do not exceed the first superfluous box lose their scores. NMS starts
    with the best box, so the boxes above the threshold do not change.
    """
    counts = [len(_boxes(output)) for output in real]
    enough = [i for i, n in enumerate(counts) if n >= count]
    if enough:
        output = real[min(enough, key=lambda i: counts[i])].copy()
        how = f"one image with {min(counts[i] for i in enough)}"
    else:
        output, how = _crowd(count, real)
    boxes = _boxes(output)
    if len(boxes) > count:
        output[4:, output[4:].max(axis=0) <= boxes[count, 4]] = 0
        how += f", cut to {count}"
    assert len(_boxes(output)) == count
    return Made(output[None], count, int((output[4:].max(axis=0) > CONF).sum()), how)


def _crowd(count: int, real: np.ndarray) -> tuple[np.ndarray, str]:
    """Combine images, with each anchor from the most confident one, until `count` boxes survive; if all images together
    have too few, raise all scores in steps of a quarter logit."""
    output = real[0].copy()
    for used, other in enumerate(real[1:], start=2):
        surer = other[4:].max(axis=0) > output[4:].max(axis=0)
        output[:, surer] = other[:, surer]
        if len(_boxes(output)) >= count:
            return output, f"{used} superimposed images"
    how = f"all {len(real)} images, superimposed"
    raised = 0.0
    while len(_boxes(output)) < count:
        raised += 0.25
        scores = output[4:].clip(1e-7, 1 - 1e-7).astype(np.float64)
        output[4:] = 1 / (1 + (1 - scores) / scores * np.exp(-0.25))
    return output, f"{how}, scores raised by {raised:g} logits"


def _boxes(output: np.ndarray) -> np.ndarray:
    return detect.detections([output[None]], RAW, classes=len(output) - 4, conf=CONF, iou=IOU, max_det=30_000)
