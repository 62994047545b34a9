"""The choice of the bundle's model that a runtime runs."""

from __future__ import annotations

from edgeprune_device import runtimes
from edgeprune_device.errors import InputError
from edgeprune_device.machine.environment import Environment
from edgeprune_device.target import Target
from edgeprune_device.trust.manifest import Manifest

__all__ = ["choose_precision", "int8_is_for_cpu"]


def choose_precision(manifest: Manifest, runtime: str, precision: str = "auto") -> str:
    """Choose the precision to run.

    Args:
        manifest: Manifest of the bundle.
        runtime: Name of the runtime.
        precision: The precision that the user asked for, or "auto".

    Raises:
        InputError: The bundle does not carry a model that fits; the message has the manifest's reason.
    """
    present = [name for name, entry in manifest.models.items() if entry["payload"] is not None]
    wanted = runtimes.order(runtime, precision, int8_is_for_cpu(manifest))
    if precision == "auto" and runtime == "ort" and Environment.read().saturates:
        # 8-bit weights are made for CPUs that do not saturate: the accuracy drop on this one was not measured.
        wide = manifest.models.get("int8", {}).get("weight_bits", 8) == 8
        wanted = tuple(p for p in wanted if not (wide and p == "int8"))
    found = [name for name in wanted if name in present]
    if found:
        return found[0]
    if precision == "auto" and not present:
        raise InputError(f"bundle {manifest.name} carries no model")
    if precision == "auto":
        raise InputError(
            f"runtime {runtime} takes {', '.join(wanted)}; bundle {manifest.name} has {', '.join(present)}"
        )
    if precision not in present:
        reason = manifest.models.get(precision, {}).get("reason")
        because = f" ({reason})" if reason else ""
        raise InputError(
            f"bundle {manifest.name} has no {precision} model{because}; it has {', '.join(present) or 'none'}"
        )
    return precision


def int8_is_for_cpu(manifest: Manifest) -> bool:
    """Whether the bundle's INT8 model is in the unsigned form for CPUs, which TensorRT does not read."""
    # A target of the user's own is not known here by name; its INT8 then counts as TensorRT's.
    return manifest.target in Target.names() and Target.load(manifest.target).int8_activations == "unsigned"
