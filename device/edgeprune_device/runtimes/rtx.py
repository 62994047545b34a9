"""TensorRT for RTX: the runtime `trt` with NVIDIA's other library, for RTX desktops.

Building an engine takes a second, so bundles contain no engines for it. No RTX card was available when this was
written: parsing and building were tested with the real library, running only with a fake.
"""

from __future__ import annotations

from typing import Optional, Tuple

from edgeprune_device.runtimes import Model, RuntimeSettings, Session, trt

AUTOMATIC = 90
LIBRARY = "tensorrt_rtx"


def available() -> Optional[str]:
    """None if TensorRT for RTX and a CUDA backend are installed, else the reason."""
    return trt.missing(LIBRARY)


def order(asked: str, int8_for_cpu: bool) -> Tuple[str, ...]:
    """The precisions to try, best first; see `edgeprune_device.runtimes.order`."""
    return trt.order_of(LIBRARY, asked, int8_for_cpu)


def open(model: Model, settings: RuntimeSettings) -> Session:
    """Open a session on device 0; see `trt.open_with`."""
    return trt.open_with(LIBRARY, "rtx", model, settings)
