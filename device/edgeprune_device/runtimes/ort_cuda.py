"""ONNX Runtime on its CUDA provider. No GPU was at hand: how it is opened and refused was seen, not how it runs."""

from __future__ import annotations

from typing import Optional, Tuple

from edgeprune_device.runtimes import Session, ort

# By name only. ONNX Runtime tells what it was built with, not what loads: "auto" would stop here for want of a library,
# where the CPU would have run.
AUTOMATIC = 0
PROVIDER = "CUDAExecutionProvider"


def available() -> Optional[str]:
    """None where onnxruntime has the provider."""
    return ort.missing(PROVIDER)


def order(asked: str, int8_for_cpu: bool) -> Tuple[str, ...]:
    """The precisions to try for what was asked, best first."""
    return ort.order_on_gpu(asked)


def open(model, settings) -> Session:
    """A session on device 0. RuntimeUnavailable where the provider does not load."""
    warnings = ort.warnings_on_gpu(settings.precision)
    return ort.OrtSession(
        model, settings.threads, name="ort-cuda", providers=[PROVIDER], spinning=settings.spinning, warnings=warnings
    )
