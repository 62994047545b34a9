"""Cut a model to a plan: tensors really shrink, every class stays a stock one.

The oracle (tests/host/test_surgery.py): in float64 the cut model's output equals that of the original whose removed
channels are masked to zero, to 1e-9 relative, and differs from the uncut output.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from edgeprune_device.errors import InputError
from torch import nn

from edgeprune.channels import Channels
from edgeprune.plan import PrunePlan

#: Attributes of stock Ultralytics modules that repeat a width, and where the width now stands. `forward` of most of
#: them chunks and does not look, but `forward_split`, exporters and `repr` do.
_WIDTHS = {
    "C2f": ("c", lambda m: m.cv1.conv.out_channels // 2),
    "C2": ("c", lambda m: m.cv1.conv.out_channels // 2),
    "C3k2": ("c", lambda m: m.cv1.conv.out_channels // 2),
    "C2PSA": ("c", lambda m: m.cv1.conv.out_channels // 2),
    "C2fPSA": ("c", lambda m: m.cv1.conv.out_channels // 2),
    "PSA": ("c", lambda m: m.cv1.conv.out_channels // 2),
    "C2fCIB": ("c", lambda m: m.cv1.conv.out_channels // 2),
    "RepNCSPELAN4": ("c", lambda m: m.cv1.conv.out_channels // 2),
    "ELAN1": ("c", lambda m: m.cv1.conv.out_channels // 2),
    "SPPELAN": ("c", lambda m: m.cv1.conv.out_channels),
    "ADown": ("c", lambda m: m.cv1.conv.out_channels),
}


def apply(plan: PrunePlan, model: nn.Module, channels: Channels) -> nn.Module:
    """A copy of `model` without the channels that `plan` removes.

    Raises:
        InputError: the plan was made for another model.
    """
    keep = plan.mask(channels)
    model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    for name, atoms in channels.out.items():
        _cut_outputs(modules[name], np.flatnonzero(keep[atoms]))
    for name, atoms in channels.inp.items():
        _cut_inputs(modules[name], np.flatnonzero(keep[atoms]))
    for module in modules.values():
        attribute, width = _WIDTHS.get(type(module).__name__, (None, None))
        if attribute is not None and hasattr(module, attribute):
            setattr(module, attribute, width(module))
    return model


def _cut_outputs(module: nn.Module, keep: np.ndarray) -> None:
    index = torch.from_numpy(keep)
    depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
    for table in (module._parameters, module._buffers):
        for key, tensor in table.items():
            if tensor is not None and tensor.ndim > 0:
                table[key] = _like(tensor, tensor.detach().index_select(0, index.to(tensor.device)))
    if isinstance(module, nn.Conv2d):
        module.out_channels = len(keep)
        if depthwise:
            module.groups = module.in_channels = len(keep)
    elif isinstance(module, nn.Linear):
        module.out_features = len(keep)
    elif hasattr(module, "num_features"):
        module.num_features = len(keep)
    else:
        raise InputError(f"{type(module).__name__}: a layer with channels that edgeprune does not know how to cut")


def _cut_inputs(module: nn.Module, keep: np.ndarray) -> None:
    weight = module.weight
    index = torch.from_numpy(keep).to(weight.device)
    module.weight = _like(weight, weight.detach().index_select(1, index))
    if isinstance(module, nn.Conv2d):
        module.in_channels = len(keep)
    else:
        module.in_features = len(keep)


def _like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    new = new.clone(memory_format=torch.contiguous_format)
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def masked(plan: PrunePlan, model: nn.Module, channels: Channels) -> nn.Module:
    """The oracle's other side: a copy of full width whose removed channels are silenced after every layer that makes
    them (convolution and batch norm: scale, shift and bias become zero)."""
    keep = plan.mask(channels)
    model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, atoms in channels.out.items():
            gone = torch.from_numpy(np.flatnonzero(~keep[atoms]))
            for tensor in (modules[name].weight, modules[name].bias):
                if tensor is not None:
                    tensor[gone] = 0
    return model
