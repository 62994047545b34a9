"""TensorRT for RTX: the runtime `trt` with NVIDIA's other library, for RTX desktops. It builds in a second, so the
engines of a bundle are not needed for it.

No RTX card was at hand: parsing and building were seen with the real library, running only with a fake.
"""

from __future__ import annotations

from typing import Optional, Tuple

from edgeprune_device.runtimes import Session, trt

AUTOMATIC = 90
LIBRARY = "tensorrt_rtx"


def available() -> Optional[str]:
    """None where TensorRT for RTX and a CUDA backend are there."""
    return trt.missing(LIBRARY)


def order(asked: str, int8_for_cpu: bool) -> Tuple[str, ...]:
    """The precisions to try for what was asked, best first."""
    return trt.order_of(LIBRARY, asked, int8_for_cpu)


def open(model, settings) -> Session:
    """A session on device 0."""
    return trt.open_with(LIBRARY, "rtx", model, settings)
