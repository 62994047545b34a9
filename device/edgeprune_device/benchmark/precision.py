"""Chooses the model of a bundle that a runtime runs."""

from __future__ import annotations

from edgeprune_device import runtimes
from edgeprune_device.errors import InputError
from edgeprune_device.machine.environment import Environment
from edgeprune_device.option import named
from edgeprune_device.target import Target
from edgeprune_device.trust.manifest import Manifest

__all__ = ["choose_precision", "int8_is_for_cpu"]


def choose_precision(manifest: Manifest, runtime: str, precision: str = "auto") -> str:
    """Choose the precision to run.

    Args:
        manifest: Manifest of the bundle.
        runtime: Name of the runtime.
        precision: The requested precision, or "auto".

    Raises:
        InputError: The bundle has no suitable model; the message gives the manifest's reason.
    """
    present = [name for name, entry in manifest.models.items() if entry["payload"] is not None]
    wanted = runtimes.order(runtime, precision, int8_is_for_cpu(manifest))
    if precision == "auto" and runtimes.on_cpu(runtime) and Environment.read().saturates:
        # 8-bit weights are made for CPUs that do not saturate; the accuracy drop on this CPU was not measured.
        wide = manifest.models.get("int8", {}).get("weight_bits", 8) == 8
        wanted = tuple(p for p in wanted if not (wide and p == "int8"))
    available = [name for name in wanted if name in present]
    if available:
        return available[0]
    if precision == "auto" and not present:
        raise InputError(
            f"bundle {manifest.name}: no model in this bundle; build the bundle again with edgeprune build"
        )
    if precision == "auto":
        raise InputError(
            f"bundle {manifest.name}: no model for runtime {runtime} (found {', '.join(present)}, expected "
            f"{' or '.join(wanted)}); use another {named('runtime')}"
        )
    if precision not in present:
        reason = manifest.models.get(precision, {}).get("reason")
        because = f" ({reason})" if reason else ""
        raise InputError(
            f"bundle {manifest.name}: no {precision} model{because}; available: {', '.join(present) or 'none'}"
        )
    return precision


def int8_is_for_cpu(manifest: Manifest) -> bool:
    """Whether the bundle's INT8 model has the unsigned form for CPUs, which TensorRT does not accept."""
    # A target that the user defined is not known here; its INT8 counts as made for TensorRT.
    return manifest.target in Target.names() and Target.load(manifest.target).int8_activations == "unsigned"
