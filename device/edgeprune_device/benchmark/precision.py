"""Which of a bundle's models a runtime takes."""

from __future__ import annotations

from edgeprune_device import runtimes
from edgeprune_device.errors import InputError
from edgeprune_device.machine.environment import Environment
from edgeprune_device.target import Target
from edgeprune_device.trust.manifest import Manifest

__all__ = ["choose_precision", "int8_is_for_cpu"]


def choose_precision(manifest: Manifest, runtime: str, precision: str = "auto") -> str:
    """The precision to run; InputError, with the manifest's reason, when the bundle does not carry it."""
    present = [name for name, entry in manifest.models.items() if entry["payload"] is not None]
    wanted = runtimes.order(runtime, precision, int8_is_for_cpu(manifest))
    if precision == "auto" and runtime == "ort" and Environment.read().saturates:
        # Made where nothing saturates: what it loses here, nobody has measured.
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
