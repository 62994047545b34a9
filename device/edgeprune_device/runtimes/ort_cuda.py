"""ONNX Runtime on its CUDA provider.

No GPU was available when this was written: opening and refusing were tested, running was not.
"""

from __future__ import annotations

from typing import Optional, Tuple

from edgeprune_device.runtimes import Session, ort

# By name only. ONNX Runtime reports its build, not whether a provider loads: "auto" would fail here without a shared
# library, where the CPU would have run.
AUTOMATIC = 0
PROVIDER = "CUDAExecutionProvider"


def available() -> Optional[str]:
    """None where onnxruntime has the provider, else the reason."""
    return ort.missing(PROVIDER)


def order(asked: str, int8_for_cpu: bool) -> Tuple[str, ...]:
    """The precisions to try, best first; see `edgeprune_device.runtimes.order`."""
    return ort.order_on_gpu(asked)


def open(model, settings) -> Session:
    """Open a session on device 0.

    Raises:
        RuntimeUnavailable: The provider does not load.
    """
    warnings = ort.warnings_on_gpu(settings.precision)
    return ort.OrtSession(
        model, settings.threads, name="ort-cuda", providers=[PROVIDER], spinning=settings.spinning, warnings=warnings
    )
