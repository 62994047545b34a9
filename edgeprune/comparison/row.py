"""One model's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeprune_device.vision.accuracy import Accuracy


@dataclass(frozen=True)
class Row:
    """One model's figures; what was not measured is None.

    layers: output channels of each convolution; latency_ms, stages_ms, fps_*: see measuring.timing; pictures: that the
    accuracy was measured on; objects_found: detections of confidence >= 0.25; recorded: figures of another run, on
    `machine`; caveat: why a figure is not what it seems; head: which of a network's two its figures are of.
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
    """The fields of a Row that an Accuracy fills."""
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
