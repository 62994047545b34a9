"""The figures of one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeprune_device.vision.accuracy import Accuracy


@dataclass(frozen=True)
class Row:
    """The figures of one model; a figure that was not measured is None.

    Attributes:
        name: name in the comparison.
        path: its file.
        sha256: hash of the file.
        imgsz: network input, px.
        size_bytes: size of the file, bytes.
        parameters: number of parameters.
        macs: multiply-accumulates of one image.
        channels: number of channels.
        layers: {convolution: output channels}.
        latency_ms: latency of the inference, ms (see measuring.timing).
        stages_ms: median of decode, pre, infer and post, ms.
        fps_inference_only: images a second of the inference alone.
        fps_end_to_end: images a second with decoding, pre- and post-processing.
        map50: mAP50.
        map50_95: mAP50-95.
        small_map50_95: mAP50-95 of small objects.
        per_class: [{name, boxes, map50, map50_95}].
        pictures: number of images that the accuracy was measured on.
        objects_found: number of detections of confidence >= 0.25.
        measured_with: description of the session, or of the report.
        mj_per_frame: energy, mJ an image.
        verdict: verdict of a report.
        recorded: the figures are of another run.
        machine: the machine of a recorded run.
        caveat: reason not to compare the latency.
        head: the head that the figures are of, of a network that has two.
    """

    name: str
    path: str
    sha256: str | None = None
    imgsz: int | None = None
    size_bytes: int | None = None
    parameters: int | None = None
    macs: int | None = None
    channels: int | None = None
    layers: Mapping[str, int] | None = None
    latency_ms: Mapping[str, Any] | None = None
    stages_ms: Mapping[str, float] | None = None
    fps_inference_only: float | None = None
    fps_end_to_end: float | None = None
    map50: float | None = None
    map50_95: float | None = None
    small_map50_95: float | None = None
    per_class: Sequence[Mapping[str, Any]] | None = None
    pictures: int | None = None
    objects_found: int | None = None
    measured_with: str | None = None
    mj_per_frame: float | None = None
    verdict: str | None = None
    recorded: bool = False
    machine: str | None = None
    caveat: str | None = None
    head: str | None = None


def accuracy_of(accuracy: Accuracy | None) -> dict[str, Any]:
    """The fields of a Row that an Accuracy fills; none without one."""
    if accuracy is None:
        return {}
    return {
        "map50": accuracy.map50,
        "map50_95": accuracy.map50_95,
        "small_map50_95": accuracy.small_map50_95,
        "per_class": [
            {"name": c.name, "boxes": c.boxes, "map50": c.map50, "map50_95": c.map50_95} for c in accuracy.per_class
        ],
        "pictures": accuracy.pictures,
    }
