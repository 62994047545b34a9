"""The saving of a rectangular input, for data sets whose images share a shape."""

from __future__ import annotations

from typing import Any

from edgeprune_device.option import named

from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.measuring.timing import time_models
from edgeprune.model.count import count
from edgeprune.model.head import strides
from edgeprune.model.shape import rectangle
from edgeprune.workflow.job import Job

#: Rounds of the timing; the ratio of two files that run alternately is stable after few.
_ROUNDS = 15


def saving(job: Job) -> dict[str, Any]:
    """Measure the saving of a rectangle in the shape of the images, tell the user, and return the figures.

    Returns:
        {"rectangle": {imgsz, macs, latency_ms, speedup}} for the record; empty if the input is no square, or if the
            images have no common shape or are square.
    """
    model, square = job.original.model, job.imgsz
    size = rectangle(job.data.shapes, max(square), max(strides(model))) if square.is_square else None
    if size is None or size.is_square:
        return {}
    files = {str(s): to_onnx(model, s).SerializeToString() for s in (square, size)}
    now, then = time_models(files, rounds=_ROUNDS).values()
    macs = count(model, size).macs
    ms = [timing.to_json()["latency_ms"]["p50"] for timing in (now, then)]
    job.reporter.say(
        f"the images have one shape: an input of {size.height} x {size.width} px instead of {square} x {square} takes "
        f"{macs / count(model, square).macs:.0%} of the MACs and is {then.speedup:.2f}x as fast ({ms[0]:.1f} -> "
        f"{ms[1]:.1f} ms, {now.runtime}); ask for it with {named('imgsz', f'auto:{max(square)}')}"
    )
    return {"rectangle": {"imgsz": list(size), "macs": macs, "latency_ms": ms[1], "speedup": round(then.speedup, 3)}}
