"""Latency of ONNX models on this machine's CPU. The models take turns, image by image, so that a busy moment of the
machine affects all alike.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from edgeprune_device.errors import InputError
from edgeprune_device.vision import preprocess
from edgeprune_device.vision.postprocess import detections

from edgeprune.data.samples import pick
from edgeprune.measuring.accuracy import SHOWN_CONF
from edgeprune.model import head


def _content(picture: Path) -> bytes:
    try:
        return picture.read_bytes()
    except OSError as error:
        raise InputError(f"{picture}: the picture cannot be read ({(error.strerror or str(error)).lower()})") from error


def _read(model: bytes | Path) -> onnx.ModelProto:
    return onnx.load_from_string(model if isinstance(model, bytes) else _content(model))


@dataclass(frozen=True)
class Timing:
    """The times of one model, of the same rounds as those of the models it was timed with.

    Attributes:
        stages: Stage -> (rounds,) ms of one image: `decode`, `pre`, `infer` and `post`, or `infer` alone where there
            were no images.
        speedup: Median over the rounds of the first model's inference time divided by this model's.
        threads: Threads of the inference.
        runtime: The runtime of the inference, as text.
    """

    stages: dict[str, np.ndarray]
    speedup: float
    threads: int
    runtime: str

    def to_json(self) -> dict:
        """{latency_ms, stages_ms, fps_inference_only, fps_end_to_end}; null where a figure was not measured."""
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


def time_models(
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
    """Time ONNX models in turns: each round is one image through every model.

    Args:
        models: Name -> file or its bytes; speed-ups are relative to the first.
        imgsz: The side of the square network input, px.
        pictures: Files to decode, letterbox, infer and post-process. Without any, inference alone is timed, on noise.
            The files are read into memory before, so that no disk access is timed.
        classes: The number of classes, for NMS.
        kinds: Name -> the meaning of the output (`edgeprune_device.output`), where the file does not state it.
        threads: Threads of the inference.
        rounds: The number of timed rounds.
        warmup: The number of rounds before, which are not timed.
    """
    from edgeprune_device import runtimes

    sessions = {name: runtimes.open(model, "ort", runtimes.RuntimeSettings(threads)) for name, model in models.items()}
    noise = np.random.default_rng(0).random((1, 3, imgsz, imgsz), dtype=np.float32)
    sources = [(str(path), _content(path)) for path in pick(pictures, rounds)]
    prepare = preprocess.Preprocessor(imgsz)
    meant = {}
    if sources:
        stated = kinds or {}
        meant = {n: head.output_of_file(_read(m), stated.get(n), classes=classes) for n, m in models.items()}

    def through(name: str, session, source: tuple[str, bytes] | None) -> list[tuple[str, int]]:
        """(stage, time of its end in ns) of one image; the first entry is the begin."""
        ends, x = [("", time.perf_counter_ns())], noise
        if source is not None:
            image = preprocess.decode(source[1], source[0])
            ends.append(("decode", time.perf_counter_ns()))
            x, box = prepare(image)
            ends.append(("pre", time.perf_counter_ns()))
        outputs = session.infer(x)
        ends.append(("infer", time.perf_counter_ns()))
        if source is not None:
            box.undo(detections(outputs, meant[name], classes=classes, conf=SHOWN_CONF))
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
