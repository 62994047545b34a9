"""Accuracy and latency of models in any form, by one evaluator and one clock.

Accuracy is always `edgeprune_device.accuracy` on squarely letterboxed pictures. Latency is always ONNX Runtime on this
machine's CPU, the models taking turns picture by picture, so that a busy moment falls on all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from edgeprune_device import accuracy, evaluation
from edgeprune_device.accuracy import Accuracy, Matches
from torch import nn

from edgeprune.dataset import Dataset

#: The Exif tag.
_ORIENTATION = 0x0112


class TorchSession:
    """A network as the evaluator takes it: a fused float32 copy on the CPU, returning its detections tensor."""

    description = f"PyTorch {torch.__version__.split('+')[0]}, CPU, float32"

    def __init__(self, model: nn.Module) -> None:
        from edgeprune.exporting import prepare

        size = int(max(model.stride)) * 2
        self._model = prepare(model, (size, size))

    def infer(self, x: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            output = self._model(torch.from_numpy(np.ascontiguousarray(x)))
        return [(output[0] if isinstance(output, (list, tuple)) else output).numpy()]


class ReferenceSession:
    """An ONNX file computed as written, without the shortcuts ONNX Runtime takes on a CPU: what TensorRT will compute
    is nearer to this (FP16 values really rounded, Q/DQ kept apart)."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnxruntime

        from edgeprune.quantize import reference_session, rounded

        self._session = reference_session(rounded(model), threads=torch.get_num_threads())
        self._input = self._session.get_inputs()[0].name
        self.description = f"onnxruntime {onnxruntime.__version__} CPU, as written (FP16 rounded, Q/DQ not fused)"

    def infer(self, x: np.ndarray) -> list[np.ndarray]:
        return self._session.run(None, {self._input: x})


def evaluate(
    session,
    dataset: Dataset,
    pictures: Sequence[Path],
    imgsz: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[Accuracy, Matches]:
    """COCO mAP of `session` on labelled pictures, and the matches behind it (for bootstrap intervals and subsets)."""
    items = [(p.name, str(p), truth(dataset, p)) for p in pictures]
    found_accuracy, found = evaluation.evaluate(
        session, items, imgsz=imgsz, classes=list(dataset.names), progress=progress
    )
    return found_accuracy, accuracy.match(found, [truth for _, _, truth in items], list(dataset.names))


def score(session, dataset: Dataset, pictures: Sequence[Path], imgsz: int) -> float:
    """mAP50-95 to choose by; NaN where the pictures have no labelled box."""
    found = evaluate(session, dataset, pictures, imgsz)[0].map50_95
    return float("nan") if found is None else found


def truth(dataset: Dataset, picture: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(picture) as image:
        width, height = image.size
        if image.getexif().get(_ORIENTATION, 1) >= 5:  # lying on its side: decode() turns it, labels mean it turned
            width, height = height, width
    return dataset.truth(picture, (height, width))


def bootstrap(a: Matches, b: Matches, score: Callable[[Accuracy], float], *, samples: int = 1000, seed: int = 0):
    """Paired bootstrap over pictures of score(a) - score(b): (difference, low, high), 95 % percentile interval.

    a, b: matches of the same pictures in the same order.
    """
    rng = np.random.default_rng(seed)
    count = a.pictures
    drawn = []
    for _ in range(samples):
        index = rng.integers(count, size=count)
        drawn.append(score(a.accuracy(index)) - score(b.accuracy(index)))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return score(a.accuracy()) - score(b.accuracy()), float(low), float(high)


def latency(
    models: dict[str, bytes | Path], imgsz: int, *, threads: int = 1, rounds: int = 40, warmup: int = 5
) -> dict[str, dict]:
    """Inference time of ONNX models, milliseconds, in turns.

    Returns name -> {"p50", "p90", "rounds", "threads", "runtime"}, and under "speedup" the median over rounds of the
    first model's time divided by this one's.
    """
    from edgeprune_device import runtimes

    sessions = {name: runtimes.open(model, "ort", runtimes.Settings(threads)) for name, model in models.items()}
    x = np.random.default_rng(0).random((1, 3, imgsz, imgsz), dtype=np.float32)
    times = {name: np.zeros(rounds) for name in sessions}
    try:
        for i in range(-warmup, rounds):
            for name, session in sessions.items():
                start = time.perf_counter_ns()
                session.infer(x)
                if i >= 0:
                    times[name][i] = (time.perf_counter_ns() - start) / 1e6
        described = {name: session.description for name, session in sessions.items()}
    finally:
        for session in sessions.values():
            session.close()
    first = times[next(iter(times))]
    return {
        name: {
            "p50": round(float(np.median(t)), 3),
            "p90": round(float(np.percentile(t, 90)), 3),
            "speedup": round(float(np.median(first / t)), 3),
            "rounds": rounds,
            "threads": threads,
            "runtime": described[name],
        }
        for name, t in times.items()
    }
