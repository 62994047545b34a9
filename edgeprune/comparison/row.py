"""The figures of one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from edgeprune_device.vision.accuracy import Accuracy

from edgeprune.measuring.per_class import ClassFigures, figures_of


class Latency(TypedDict):
    """The latency of the inference, ms; a figure that was not measured is None.

    Attributes:
        p50: median.
        p90: 90th percentile.
        speedup: speed relative to the first model, measured alternately.
        rounds: number of timed images.
        threads: number of inference threads.
        runtime: the runtime, as text.
        samples: latency of each image.
    """

    p50: float | None
    p90: float | None
    speedup: float | None
    rounds: int | None
    threads: int | None
    runtime: str
    samples: list[float] | None


@dataclass(frozen=True)
class Row:
    """The figures of one model; a figure that was not measured is None.

    Attributes:
        name: name in the comparison.
        path: its file.
        sha256: hash of the file.
        imgsz: size of the network's input, px: the side of a square, or [height, width].
        size_bytes: size of the file, bytes.
        parameters: number of parameters.
        macs: multiply-accumulates of one image.
        channels: number of channels.
        layers: {convolution: output channels}.
        latency_ms: latency of the inference, ms.
        stages_ms: median of decode, pre, infer and post, ms.
        fps_inference_only: images per second, inference only.
        fps_end_to_end: images per second with decoding, pre- and post-processing.
        map50: mAP50.
        map50_95: mAP50-95.
        map50_95_interval: its 95 % bootstrap interval (low, high), if only some images were measured.
        small_map50_95: mAP50-95 of small objects.
        per_class: average precision of each class.
        pictures: number of images on which the accuracy was measured.
        objects_found: number of detections with confidence >= 0.25.
        measured_with: description of the session, or of the report.
        mj_per_frame: energy per image, mJ.
        verdict: verdict of a report.
        recorded: whether the figures come from another run.
        machine: the machine of a recorded run.
        caveat: reason not to compare the latency.
        head: the head that was measured, if the network has two.
    """

    name: str
    path: str
    sha256: str | None = None
    imgsz: int | Sequence[int] | None = None
    size_bytes: int | None = None
    parameters: int | None = None
    macs: int | None = None
    channels: int | None = None
    layers: Mapping[str, int] | None = None
    latency_ms: Latency | None = None
    stages_ms: Mapping[str, float] | None = None
    fps_inference_only: float | None = None
    fps_end_to_end: float | None = None
    map50: float | None = None
    map50_95: float | None = None
    map50_95_interval: Sequence[float] | None = None
    small_map50_95: float | None = None
    per_class: Sequence[ClassFigures] | None = None
    pictures: int | None = None
    objects_found: int | None = None
    measured_with: str | None = None
    mj_per_frame: float | None = None
    verdict: str | None = None
    recorded: bool = False
    machine: str | None = None
    caveat: str | None = None
    head: str | None = None


def accuracy_of(accuracy: Accuracy | None, interval: tuple[float, float] | None = None) -> dict[str, Any]:
    """The fields of a Row that come from an Accuracy; empty without one.

    Args:
        accuracy: the accuracy.
        interval: the 95 % bootstrap interval of its mAP50-95, if only some images were measured.
    """
    if accuracy is None:
        return {}
    return {
        "map50": accuracy.map50,
        "map50_95": accuracy.map50_95,
        "map50_95_interval": None if interval is None else list(interval),
        "small_map50_95": accuracy.small_map50_95,
        "per_class": figures_of(accuracy),
        "pictures": accuracy.pictures,
    }
