"""Network Slimming: the scale of the batch norm as the importance of a channel (Liu et al., arXiv 1708.06519)."""

from __future__ import annotations

import numpy as np
from torch import nn

from edgeprune.pruning.channels import Channels

NEEDS_SAMPLES = False


def score(model: nn.Module, channels: Channels, samples=None) -> np.ndarray:
    """Score each atom by its batch-norm scales.

    Args:
        model: The network.
        channels: Its channels.
        samples: Not used.

    Returns:
        (atoms,) float64: the mean |gamma| over the batch norms that scale the atom; infinite where none does.
    """
    modules = dict(model.named_modules())
    total, norms = np.zeros(channels.atoms), np.zeros(channels.atoms)
    for name, atoms in channels.out.items():
        if isinstance(modules[name], nn.BatchNorm2d):
            np.add.at(total, atoms, modules[name].weight.detach().abs().double().cpu().numpy())
            np.add.at(norms, atoms, 1)
    return np.where(norms > 0, total / np.maximum(norms, 1), np.inf)
