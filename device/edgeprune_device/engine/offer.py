"""Engines that a bundle brings, built by a reference device (`edgeprune build --on`, `edgeprune engine --on`).

An engine is native code, so only a trusted bundle offers any. Each is for one ONNX file, one TensorRT and one GPU, as
its key says; the cache takes the one whose key is its own, and knows nothing of bundles.
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
    """E.g. Offer("int8-fp16.orin", "5b…", "SHA256:4Hc2…", Engine("TensorRT 10.3.0", …), read).

    - `name`: in the bundle's manifest; `key`: of the engine cache there; `signer`: fingerprint of the bundle's key
    - `engine`: what the reference device said of it; `read`: gives the plan, or raises
    """

    name: str
    key: str
    signer: str
    engine: Engine
    read: Callable[[], bytes]


def of(bundle: Bundle, precision: str) -> Tuple[Offer, ...]:
    """The engines for one of the bundle's models; none of a bundle that is not trusted."""
    found = []
    for name, entry in bundle.manifest.engines.items() if bundle.trusted else ():
        if not entry or not entry["payload"] or not {"key", "engine"} <= set(entry):
            continue  # not built, or ahead of time for a card
        with suppress(InputError):  # of a newer edgeprune: the device builds its own
            engine = Engine.from_json(entry["engine"], f"{bundle.path}: {name}")
            if engine.precision == precision:
                read = _reader(bundle, entry["payload"])
                found.append(Offer(name, entry["key"], bundle.key_fingerprint, engine, read))
    return tuple(found)


def _reader(bundle: Bundle, payload: str) -> Callable[[], bytes]:
    return lambda: bundle.read(payload)
