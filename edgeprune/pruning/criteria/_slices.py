"""The slices of an atom: the parts of all weights that make it (rows) or read it (columns).

Shared by the criteria of magnitude and of gradient; not a criterion itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from edgeprune.pruning.channels import Channels
from edgeprune.pruning.surgery import out_dim

#: Prevents a division by zero in a group whose weights are all zero.
TINY = 1e-300


def sums(
    model: nn.Module, channels: Channels, of: Callable[[nn.Parameter], torch.Tensor], *, biases: bool = False
) -> np.ndarray:
    """For each atom, the sum of `of(parameter)` over its slices in every layer.

    Args:
        model: The network.
        channels: Its channels.
        of: An elementwise function; its result has the parameter's shape.
        biases: Count the biases of convolutions and norms as well.

    Returns:
        (atoms,) float64.
    """
    modules = dict(model.named_modules())
    total = np.zeros(channels.atoms)

    def add(atoms: np.ndarray, parameter: nn.Parameter, dim: int) -> None:
        value = of(parameter).detach().double().movedim(dim, 0).reshape(len(atoms), -1).sum(1)
        np.add.at(total, atoms, value.cpu().numpy())

    for name, atoms in channels.out.items():
        for kind, parameter in modules[name].named_parameters(recurse=False):
            if biases or kind != "bias":
                add(atoms, parameter, out_dim(modules[name]) if kind == "weight" else 0)
    for name, atoms in channels.inp.items():
        add(atoms, modules[name].weight, 1 - out_dim(modules[name]))
    return total


def per_mean_of_group(values: np.ndarray, channels: Channels) -> np.ndarray:
    """(atoms,) each value divided by the mean of its group.

    The average channel of every group then costs 1, so that wide and narrow, early and late groups compare.
    """
    values = values.copy()
    for group in channels.groups:
        values[group.atoms] /= max(values[group.atoms].mean(), TINY)
    return values
