"""The names of a model's layers: the drone needs them too, so they live in the device package."""

from __future__ import annotations

from edgeprune_device.engine.layers import layer_of_node

__all__ = ["layer_of_node"]
