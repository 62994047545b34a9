"""ONNX Runtime on its CUDA provider.

No GPU was available when this was written: opening and refusing a model were tested, running one was not.
"""

from __future__ import annotations

from typing import Optional, Tuple

from edgeprune_device.runtimes import Model, RuntimeSettings, Session, ort

# Only by name. ONNX Runtime reports the providers that it was built with, not whether they load. "auto" would fail
# because of a missing shared library on machines on which the CPU works.
AUTOMATIC = 0
PROVIDER = "CUDAExecutionProvider"


def available() -> Optional[str]:
    """None if onnxruntime has the provider, else the reason."""
    return ort.missing(PROVIDER)


def order(asked: str, int8_for_cpu: bool) -> Tuple[str, ...]:
    """The precisions to try, best first; see `edgeprune_device.runtimes.order`."""
    return ort.order_on_gpu(asked)


def open(model: Model, settings: RuntimeSettings) -> Session:
    """Open a session on device 0.

    Raises:
        RuntimeUnavailable: The provider does not load.
    """
    warnings = ort.warnings_on_gpu(settings.precision)
    return ort.OrtSession(
        model, settings.threads, name="ort-cuda", providers=[PROVIDER], spinning=settings.spinning, warnings=warnings
    )
