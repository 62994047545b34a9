"""The slices of an atom: the parts of all weights that make it (rows) or read it (columns).

The magnitude and gradient criteria share this module, which is not a criterion itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from edgeprune.pruning.channels import Channels
from edgeprune.pruning.layers import Floats, Ints, layers
from edgeprune.pruning.surgery import out_dim

#: Prevents a division by zero in a group whose weights are all zero.
TINY = 1e-300


def sums(
    model: nn.Module, channels: Channels, of: Callable[[nn.Parameter], torch.Tensor], *, biases: bool = False
) -> Floats:
    """For each atom, the sum of `of(parameter)` over its slices in every layer that is not idle.

    Args:
        model: The network.
        channels: Its channels.
        of: An elementwise function; its result has the parameter's shape.
        biases: Also count the biases of convolutions and norms.

    Returns:
        (atoms,) float64.
    """
    known = layers(model)
    total = np.zeros(channels.atoms)

    def add(atoms: Ints, parameter: nn.Parameter, dim: int) -> None:
        value = of(parameter).detach().double().movedim(dim, 0).reshape(len(atoms), -1).sum(1)
        np.add.at(total, atoms, value.cpu().numpy())

    used = known.keys() - channels.idle
    for name, atoms in channels.out.items():
        for kind, parameter in known[name].named_parameters(recurse=False):
            if name in used and (biases or kind != "bias"):
                add(atoms, parameter, out_dim(known[name]) if kind == "weight" else 0)
    for name, atoms in channels.inp.items():
        if name in used:
            add(atoms, known[name].get_parameter("weight"), 1 - out_dim(known[name]))
    return total


def per_mean_of_group(values: Floats, channels: Channels) -> Floats:
    """(atoms,) each value divided by the mean of its group.

    The average channel of every group then costs 1, so that wide and narrow, early and late groups are comparable.
    """
    values = values.copy()
    for group in channels.groups:
        values[group.atoms] /= max(values[group.atoms].mean(), TINY)
    return values
