"""Latency of ONNX models on this machine's CPU.

The models take turns, image by image. A load peak of the machine therefore affects all of them equally.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from edgeprune_device import layouts as device_layouts
from edgeprune_device import runtimes
from edgeprune_device.errors import InputError, reason
from edgeprune_device.layouts import UINT8_NHWC
from edgeprune_device.size import Size
from edgeprune_device.vision import detect, preprocess
from edgeprune_device.vision.postprocess import CONF
from edgeprune_device.vision.task import Task

from edgeprune.data.samples import pick
from edgeprune.model import head


def _content(picture: Path) -> bytes:
    try:
        return picture.read_bytes()
    except OSError as error:
        raise InputError(f"{picture}: the image cannot be read ({reason(error)})") from error


def _read(model: bytes | Path) -> onnx.ModelProto:
    return onnx.load_from_string(model if isinstance(model, bytes) else _content(model))


def _size(session: runtimes.Session, layout: str) -> Size:
    height, width = session.input_shape[1:3] if layout == UINT8_NHWC else session.input_shape[2:]
    assert height is not None and width is not None  # edgeprune's files, and those that compare accepts, are static
    return Size(height, width)


@dataclass(frozen=True)
class Timing:
    """The times of one model, measured in the same rounds as the other models.

    Attributes:
        stages: Stage -> (rounds,) ms of one image: `decode`, `pre`, `infer` and `post`, or only `infer` if no
            images were given.
        speedup: Inference time of the first model divided by this model's, the median over the rounds.
        threads: The number of inference threads.
        runtime: The runtime, as text.
    """

    stages: dict[str, npt.NDArray[np.float64]]
    speedup: float
    threads: int
    runtime: str

    def to_json(self) -> dict[str, Any]:
        """{latency_ms, stages_ms, fps_inference_only, fps_end_to_end}; null if a figure was not measured."""
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
    pictures: Sequence[Path] = (),
    *,
    classes: int = 0,
    kinds: Mapping[str, str] | None = None,
    layouts: Mapping[str, str] | None = None,
    task: Task = detect.TASK,
    threads: int = 1,
    rounds: int = 40,
    warmup: int = 5,
) -> dict[str, Timing]:
    """Time ONNX models alternately: each round is one image through every model.

    Args:
        models: Name -> file or its bytes, each of one input size; speed-ups are relative to the first.
        pictures: Files to decode, letterbox, infer and post-process; they are read into memory first, so no disk access
            is timed. Without files, only inference is timed, on noise.
        classes: The number of classes, for NMS.
        kinds: Name -> the format of the outputs (`edgeprune_device.output`), if the file does not state it.
        layouts: Name -> the layout of the input (`edgeprune_device.layouts`), if the file does not state it.
        task: The task of the models.
        threads: The number of inference threads.
        rounds: The number of timed rounds.
        warmup: The number of untimed rounds before them.
    """
    sessions = {name: runtimes.open(model, "ort", runtimes.RuntimeSettings(threads)) for name, model in models.items()}
    protos = {name: _read(model) for name, model in models.items()}
    inputs = {name: head.layout_of_file(proto, (layouts or {}).get(name)) for name, proto in protos.items()}
    shaped = {name: (_size(session, inputs[name]), inputs[name]) for name, session in sessions.items()}
    noise = {(size, layout): device_layouts.noise(layout, size) for size, layout in set(shaped.values())}
    sources = [(str(path), _content(path)) for path in pick(pictures, rounds)]
    prepare = {(size, layout): preprocess.Preprocessor(size, layout) for size, layout in noise}
    meant = {}
    if sources:
        stated = kinds or {}
        meant = {n: head.output_of_file(proto, stated.get(n), classes=classes) for n, proto in protos.items()}

    def through(name: str, session: runtimes.Session, source: tuple[str, bytes] | None) -> list[tuple[str, int]]:
        """(stage, time of its end in ns) of one image; the first entry is the start."""
        ends, x = [("", time.perf_counter_ns())], noise[shaped[name]]
        if source is not None:
            image = preprocess.decode(source[1], source[0])
            ends.append(("decode", time.perf_counter_ns()))
            x, box = prepare[shaped[name]](image)
            ends.append(("pre", time.perf_counter_ns()))
        outputs = session.infer(x)
        ends.append(("infer", time.perf_counter_ns()))
        if source is not None:
            task.undo(task.detections(outputs, meant[name], classes=classes, conf=CONF), box)
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
