"""Surgery: prunes a model to a plan. Tensors become smaller, and every class stays a stock class.

The oracle (`prune.oracle`, tests/host/pruning/test_surgery.py): in float64 the output of the pruned model equals the
output of the original whose removed channels are masked to zero, to 1e-9 relative, and differs from the output of the
unpruned model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeprune.pruning.channels import Channels
from edgeprune.pruning.layers import Ints, Layer, layers
from edgeprune.pruning.plan import PrunePlan

#: Returns a width of an Ultralytics module, which has attributes that nn.Module does not declare.
_Width = Callable[[Any], int]
#: Attributes of stock Ultralytics modules that repeat a width, and the source of the new width. `forward` of most of
#: them uses chunk() and does not read the attribute, but `forward_split`, `fuse`, exporters and `repr` do.
_HALF: dict[str, _Width] = {"c": lambda m: m.cv1.conv.out_channels // 2}
_WHOLE: dict[str, _Width] = {"c": lambda m: m.cv1.conv.out_channels}
_WIDTHS: dict[str, dict[str, _Width]] = {
    **dict.fromkeys(
        ("C2f", "C2", "C3k2", "C2PSA", "C2fPSA", "PSA", "C2fCIB", "C2fAttn", "RepNCSPELAN4", "ELAN1"), _HALF
    ),
    **dict.fromkeys(("SPPELAN", "ADown"), _WHOLE),
    "Attention": {
        "head_dim": lambda m: m.pe.conv.out_channels // m.num_heads,
        "key_dim": lambda m: (m.qkv.conv.out_channels - m.pe.conv.out_channels) // (2 * m.num_heads),
    },
    "AAttn": {
        "num_heads": lambda m: m.pe.conv.out_channels // m.head_dim,
        "all_head_dim": lambda m: m.pe.conv.out_channels,
    },
    "RepVGGDW": {"dim": lambda m: _first(m).out_channels},
    "RepConv": {"c1": lambda m: _first(m).in_channels, "c2": lambda m: _first(m).out_channels},
}


def _first(module: nn.Module) -> nn.Conv2d:
    """The first convolution of a re-parametrised block, fused or not."""
    return next(m for m in module.modules() if isinstance(m, nn.Conv2d))


def apply(plan: PrunePlan, model: nn.Module, channels: Channels) -> nn.Module:
    """A copy of `model` without the channels that `plan` removes.

    Args:
        plan: The channels to keep.
        model: The network; it is not changed.
        channels: Its channels.

    Raises:
        InputError: The plan was made for another model.
    """
    keep = plan.mask(channels)
    model = copy.deepcopy(model)
    known, modules = layers(model), dict(model.named_modules())
    for name, atoms in channels.out.items():
        _cut_outputs(known[name], np.flatnonzero(keep[atoms]))
    for name, atoms in channels.inp.items():
        _cut_inputs(known[name], np.flatnonzero(keep[atoms]))
    for name, atoms in channels.scales.items():
        owner, _, key = name.rpartition(".")
        scale = model.get_parameter(name)
        modules[owner].register_parameter(key, _indexed_parameter(scale, 0, np.flatnonzero(keep[atoms])))
    for (name, attribute), parts in channels.splits.items():
        setattr(modules[name], attribute, [int(keep[part].sum()) for part in parts])
    for module in modules.values():
        for attribute, width in _WIDTHS.get(type(module).__name__, {}).items():
            if hasattr(module, attribute):
                setattr(module, attribute, width(module))
    return model


def _cut_outputs(layer: Layer, keep: Ints) -> None:
    for key, parameter in layer.named_parameters(recurse=False):
        dim = out_dim(layer) if key == "weight" else 0
        layer.register_parameter(key, _indexed_parameter(parameter, dim, keep))
    for key, buffer in layer.named_buffers(recurse=False):
        if buffer.ndim > 0:
            setattr(layer, key, _indexed(buffer, 0, keep))
    if isinstance(layer, nn.Linear):
        layer.out_features = len(keep)
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.num_features = len(keep)
    else:
        if layer.groups == layer.in_channels == layer.out_channels and layer.groups > 1:  # depthwise
            layer.groups = layer.in_channels = len(keep)
        layer.out_channels = len(keep)


def _cut_inputs(layer: Layer, keep: Ints) -> None:
    layer.register_parameter("weight", _indexed_parameter(layer.get_parameter("weight"), 1 - out_dim(layer), keep))
    if isinstance(layer, nn.Linear):
        layer.in_features = len(keep)
    elif isinstance(layer, nn.modules.conv._ConvNd):
        layer.in_channels = len(keep)


def out_dim(layer: nn.Module) -> int:
    """The dimension of the weight that holds the output channels. In a layer without groups, the input channels are the
    other one of the first two dimensions.
    """
    return int(isinstance(layer, nn.modules.conv._ConvTransposeNd) and layer.groups == 1)


def _indexed(tensor: torch.Tensor, dim: int, keep: Ints) -> torch.Tensor:
    index = torch.from_numpy(keep).to(tensor.device)
    return tensor.detach().index_select(dim, index).clone(memory_format=torch.contiguous_format)


def _indexed_parameter(parameter: nn.Parameter, dim: int, keep: Ints) -> nn.Parameter:
    return nn.Parameter(_indexed(parameter, dim, keep), requires_grad=parameter.requires_grad)


def masked(plan: PrunePlan, model: nn.Module, channels: Channels) -> nn.Module:
    """A copy of full width with the removed channels set to zero after every layer that makes them: the oracle's
    reference.

    The weights, scale, shift and bias of these channels become zero.

    Args:
        plan: The channels to keep.
        model: The network; it is not changed.
        channels: Its channels.
    """
    keep = plan.mask(channels)
    model = copy.deepcopy(model)
    known = layers(model)
    with torch.no_grad():
        for name, atoms in channels.out.items():
            gone = torch.from_numpy(np.flatnonzero(~keep[atoms]))
            for key, parameter in known[name].named_parameters(recurse=False):
                dim = out_dim(known[name]) if key == "weight" else 0
                parameter.index_fill_(dim, gone.to(parameter.device), 0)
        for name, atoms in channels.scales.items():
            scale = model.get_parameter(name)
            scale[torch.from_numpy(~keep[atoms]).to(scale.device)] = 0
    return model
