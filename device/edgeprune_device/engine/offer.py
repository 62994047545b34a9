"""Engines in a bundle, built by a reference device (`edgeprune build --on`, `edgeprune engine --on`).

An engine is native code, so only a trusted bundle offers any. Its key identifies one ONNX file, one TensorRT and one
GPU. The cache uses the engine whose key equals its own, and does not read bundles.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Callable, Tuple

from edgeprune_device.engine import Engine
from edgeprune_device.errors import InputError
from edgeprune_device.trust.bundle import Bundle

__all__ = ["Offer", "of"]


@dataclass(frozen=True)
class Offer:
    """One engine of a bundle, e.g. Offer("int8-fp16.orin", "5b…", "SHA256:4Hc2…", Engine("TensorRT 10.3.0", …), read).

    Attributes:
        name: Name of the engine in the bundle's manifest.
        key: Key of the engine cache on the reference device.
        signer: Fingerprint of the bundle's key.
        engine: Description by the reference device.
        read: Returns the plan, or raises.
    """

    name: str
    key: str
    signer: str
    engine: Engine
    read: Callable[[], bytes]


def of(bundle: Bundle, precision: str) -> Tuple[Offer, ...]:
    """The engines for one of the bundle's models; none if the bundle is not trusted.

    Args:
        bundle: The bundle.
        precision: Precision of the model.
    """
    offers = []
    for name, entry in bundle.manifest.engines.items() if bundle.trusted else ():
        if not entry or not entry["payload"] or not {"key", "engine"} <= set(entry):
            continue  # not built, or built without a GPU
        with suppress(InputError):  # from a newer edgeprune; the device builds its own
            engine = Engine.from_json(entry["engine"], f"{bundle.path}: {name}")
            if engine.precision == precision:
                read = _reader(bundle, entry["payload"])
                offers.append(Offer(name, entry["key"], bundle.key_fingerprint, engine, read))
    return tuple(offers)


def _reader(bundle: Bundle, payload: str) -> Callable[[], bytes]:
    return lambda: bundle.read(payload)
