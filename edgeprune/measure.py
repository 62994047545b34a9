"""Accuracy and latency of models in any form, by one evaluator and one clock.

Accuracy is always `edgeprune_device.accuracy` on squarely letterboxed pictures. Latency is always ONNX Runtime on this
machine's CPU, the models taking turns picture by picture, so that a busy moment falls on all of them alike.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from edgeprune_device import accuracy, evaluation, vision
from edgeprune_device.accuracy import Accuracy, Matches
from edgeprune_device.errors import InputError
from torch import nn

from edgeprune import head
from edgeprune.dataset import Dataset
from edgeprune.samples import pick

#: Confidence from which a detection is shown, and counts as an object found: as `yolo predict` has it.
SHOWN_CONF = 0.25
#: The Exif tag.
_ORIENTATION = 0x0112


class TorchSession:
    """A network as the evaluator takes it: a fused float32 copy on the CPU, returning its detections tensor.

    imgsz: the one size it runs at, px: a head that sorts its own detections keeps as many as that size has. kind: what
    the output means, as of every session here, see edgeprune_device.output.
    """

    description = f"PyTorch {torch.__version__.split('+')[0]}, CPU, float32"

    def __init__(self, model: nn.Module, imgsz: int) -> None:
        from edgeprune.exporting import prepare

        self._model, self._size = prepare(model, (imgsz, imgsz)), (imgsz, imgsz)
        self.kind = head.output_of_network(self._model)

    def infer(self, x: np.ndarray) -> list[np.ndarray]:
        if x.shape[2:] != self._size:
            raise InputError(f"the network was made ready for {self._size} px, not {x.shape[2:]}")
        with torch.inference_mode():
            output = self._model(torch.from_numpy(np.ascontiguousarray(x)))
        return [(output[0] if isinstance(output, (list, tuple)) else output).numpy()]


class OnnxSession:
    """An ONNX file as ONNX Runtime runs it on this CPU. kind: what its output means, where not the file says it."""

    def __init__(self, model: onnx.ModelProto | bytes, kind: str | None = None) -> None:
        from edgeprune_device import runtimes

        proto, data = (onnx.load_from_string(model), model) if isinstance(model, bytes) else (model, None)
        self.kind = head.output_of_file(proto, kind)
        self._session = runtimes.open(data or proto.SerializeToString(), "ort")
        self.description = self._session.description

    def infer(self, x: np.ndarray) -> list[np.ndarray]:
        return self._session.infer(x)


class ReferenceSession:
    """An ONNX file computed as written, without the shortcuts ONNX Runtime takes on a CPU: what TensorRT will compute
    is nearer to this (FP16 values really rounded, Q/DQ kept apart)."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnxruntime

        from edgeprune.quantize import reference_session, rounded

        self.kind = head.output_of_file(model)
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
    shown: list[np.ndarray] | None = None,
) -> tuple[Accuracy, Matches]:
    """COCO mAP of `session` on labelled pictures, and the matches behind it (for bootstrap intervals and subsets).

    session: infers, at `imgsz`, and says by its `kind` what comes out: one of the classes above.
    shown: is given each picture's detections as `yolo predict` would show them, of the same inference: (n, 6)
    [x1, y1, x2, y2, score, class] in picture px, score >= SHOWN_CONF.
    """
    classes = list(dataset.names)
    items = [(p.name, str(p), truth(dataset, p)) for p in pictures]

    def seen(outputs, box):
        shown.append(box.undo(vision.detections(outputs, session.kind, classes=len(classes), conf=SHOWN_CONF)))

    found_accuracy, found = evaluation.evaluate(
        session,
        items,
        imgsz=imgsz,
        classes=classes,
        kind=session.kind,
        progress=progress,
        seen=None if shown is None else seen,
    )
    return found_accuracy, accuracy.match(found, [truth for _, _, truth in items], classes)


def score(session, dataset: Dataset, pictures: Sequence[Path], imgsz: int) -> float:
    """mAP50-95 to choose by; NaN where the pictures have no labelled box."""
    found = evaluate(session, dataset, pictures, imgsz)[0].map50_95
    return float("nan") if found is None else found


def shape(picture: Path) -> tuple[int, int]:
    """(height, width) of a picture, upright. InputError: it is gone or damaged."""
    from PIL import Image

    try:
        with Image.open(picture) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
    except Exception:  # a damaged file makes Pillow's plug-ins raise almost anything: decode() says what
        height, width = vision.decode(picture).shape[:2]
        return height, width
    # Lying on its side: decode() turns it, labels mean it turned.
    return (width, height) if turned else (height, width)


def _content(picture: Path) -> bytes:
    try:
        return picture.read_bytes()
    except OSError as error:
        raise InputError(f"{picture}: the picture cannot be read ({(error.strerror or str(error)).lower()})") from error


def _read(model: bytes | Path) -> onnx.ModelProto:
    return onnx.load_from_string(model if isinstance(model, bytes) else _content(model))


def truth(dataset: Dataset, picture: Path) -> np.ndarray:
    return dataset.truth(picture, shape(picture))


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


@dataclass(frozen=True)
class Timing:
    """One model's times, ms, of the same rounds as those it was timed beside.

    stages: decode, pre, infer, post of a picture a round (rounds,), or infer alone where there were no pictures;
    speedup: median over rounds of the first model's inference divided by this one's; threads, runtime: of inference.
    """

    stages: dict[str, np.ndarray]
    speedup: float
    threads: int
    runtime: str

    def to_json(self) -> dict:
        """{latency_ms, stages_ms, fps_inference_only, fps_end_to_end}; null what was not timed."""
        infer = self.stages["infer"]
        whole = len(self.stages) > 1
        return {
            "latency_ms": {
                "p50": round(float(np.median(infer)), 3),
                "p90": round(float(np.percentile(infer, 90)), 3),
                "speedup": round(self.speedup, 3),
                "rounds": len(infer),
                "threads": self.threads,
                "runtime": self.runtime,
                "samples": [round(float(ms), 3) for ms in infer],
            },
            "stages_ms": {k: round(float(np.median(v)), 3) for k, v in self.stages.items()} if whole else None,
            "fps_inference_only": round(1000 / float(np.median(infer)), 1),
            "fps_end_to_end": round(1000 / float(np.median(sum(self.stages.values()))), 1) if whole else None,
        }


def latency(
    models: dict[str, bytes | Path],
    imgsz: int,
    pictures: Sequence[Path] = (),
    *,
    classes: int = 0,
    kinds: Mapping[str, str] | None = None,
    threads: int = 1,
    rounds: int = 40,
    warmup: int = 5,
) -> dict[str, Timing]:
    """Time ONNX models in turns: each round is one picture through every model.

    pictures: files to decode, letterbox, infer and post-process (NMS for `classes` classes); without any, inference
    alone on noise. They are read into memory before: a disk is nobody's latency.
    kinds: what the outputs of models mean, see edgeprune_device.output, where not their files say it.
    """
    from edgeprune_device import runtimes

    sessions = {name: runtimes.open(model, "ort", runtimes.Settings(threads)) for name, model in models.items()}
    noise = np.random.default_rng(0).random((1, 3, imgsz, imgsz), dtype=np.float32)
    sources = [(str(path), _content(path)) for path in pick(pictures, rounds)]
    prepare = vision.Preprocessor(imgsz)
    meant = {}
    if sources:
        stated = kinds or {}
        meant = {n: head.output_of_file(_read(m), stated.get(n), classes=classes) for n, m in models.items()}

    def through(name: str, session, source: tuple[str, bytes] | None) -> list[tuple[str, int]]:
        """(stage, when it ended) of one picture, the first being its begin."""
        ends, x = [("", time.perf_counter_ns())], noise
        if source is not None:
            image = vision.decode(source[1], source[0])
            ends.append(("decode", time.perf_counter_ns()))
            x, box = prepare(image)
            ends.append(("pre", time.perf_counter_ns()))
        outputs = session.infer(x)
        ends.append(("infer", time.perf_counter_ns()))
        if source is not None:
            box.undo(vision.detections(outputs, meant[name], classes=classes, conf=SHOWN_CONF))
            ends.append(("post", time.perf_counter_ns()))
        return ends

    names = ("decode", "pre", "infer", "post") if sources else ("infer",)
    times = {name: {stage: np.zeros(rounds) for stage in names} for name in sessions}
    try:
        for i in range(-warmup, rounds):
            source = sources[i % len(sources)] if sources else None
            for name, session in sessions.items():
                ends = through(name, session, source)
                if i >= 0:
                    for (_, before), (stage, end) in itertools.pairwise(ends):
                        times[name][stage][i] = (end - before) / 1e6
        described = {name: session.description for name, session in sessions.items()}
    finally:
        for session in sessions.values():
            session.close()
    first = next(iter(times.values()))["infer"]
    return {
        name: Timing(stages, float(np.median(first / stages["infer"])), threads, described[name])
        for name, stages in times.items()
    }
