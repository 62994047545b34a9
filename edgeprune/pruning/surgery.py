"""Surgery: cut a model to a plan. Tensors really shrink, and every class stays a stock one.

The oracle (`prune.oracle`, tests/host/pruning/test_surgery.py): in float64 the output of the cut model equals that of
the original whose removed channels are masked to zero, to 1e-9 relative, and differs from the uncut output.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from edgeprune.pruning.channels import Channels
from edgeprune.pruning.plan import PrunePlan

#: Attributes of stock Ultralytics modules that repeat a width, and where the new width is found. `forward` of most of
#: them chunks and does not read the attribute, but `forward_split`, `fuse`, exporters and `repr` do.
_HALF = {"c": lambda m: m.cv1.conv.out_channels // 2}
_WHOLE = {"c": lambda m: m.cv1.conv.out_channels}
_WIDTHS = {
    **dict.fromkeys(
        ("C2f", "C2", "C3k2", "C2PSA", "C2fPSA", "PSA", "C2fCIB", "C2fAttn", "RepNCSPELAN4", "ELAN1"), _HALF
    ),
    **dict.fromkeys(("SPPELAN", "ADown"), _WHOLE),
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
    modules = dict(model.named_modules())
    for name, atoms in channels.out.items():
        _cut_outputs(modules[name], np.flatnonzero(keep[atoms]))
    for name, atoms in channels.inp.items():
        _cut_inputs(modules[name], np.flatnonzero(keep[atoms]))
    for name, atoms in channels.scales.items():
        owner, _, key = name.rpartition(".")
        modules[owner]._parameters[key] = _index(modules[owner]._parameters[key], 0, np.flatnonzero(keep[atoms]))
    for (name, attribute), parts in channels.splits.items():
        setattr(modules[name], attribute, [int(keep[part].sum()) for part in parts])
    for module in modules.values():
        for attribute, width in _WIDTHS.get(type(module).__name__, {}).items():
            if hasattr(module, attribute):
                setattr(module, attribute, width(module))
    return model


def _cut_outputs(module: nn.Module, keep: np.ndarray) -> None:
    for table in (module._parameters, module._buffers):
        for key, tensor in table.items():
            if tensor is not None and tensor.ndim > 0:
                table[key] = _index(tensor, out_dim(module) if key == "weight" else 0, keep)
    if isinstance(module, nn.Linear):
        module.out_features = len(keep)
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_features = len(keep)
    else:
        if module.groups == module.in_channels == module.out_channels and module.groups > 1:  # depthwise
            module.groups = module.in_channels = len(keep)
        module.out_channels = len(keep)


def _cut_inputs(module: nn.Module, keep: np.ndarray) -> None:
    module.weight = _index(module.weight, 1 - out_dim(module), keep)
    if isinstance(module, nn.Linear):
        module.in_features = len(keep)
    else:
        module.in_channels = len(keep)


def out_dim(module: nn.Module) -> int:
    """The dimension of the weight that holds the output channels. In an ordinary layer the input channels are the other
    of the first two dimensions.
    """
    return int(isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups == 1)


def _index(tensor: torch.Tensor, dim: int, keep: np.ndarray) -> torch.Tensor:
    index = torch.from_numpy(keep).to(tensor.device)
    new = tensor.detach().index_select(dim, index).clone(memory_format=torch.contiguous_format)
    return nn.Parameter(new, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new


def masked(plan: PrunePlan, model: nn.Module, channels: Channels) -> nn.Module:
    """A copy of full width whose removed channels are silenced after every layer that makes them: the reference of the
    oracle.

    The weights, scale, shift and bias of these channels become zero.

    Args:
        plan: The channels to keep.
        model: The network; it is not changed.
        channels: Its channels.
    """
    keep = plan.mask(channels)
    model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, atoms in channels.out.items():
            module, gone = modules[name], torch.from_numpy(np.flatnonzero(~keep[atoms]))
            module.weight.index_fill_(out_dim(module), gone.to(module.weight.device), 0)
            if module.bias is not None:
                module.bias.index_fill_(0, gone.to(module.bias.device), 0)
        for name, atoms in channels.scales.items():
            model.get_parameter(name)[torch.from_numpy(~keep[atoms])] = 0
    return model
