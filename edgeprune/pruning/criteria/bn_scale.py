"""Network Slimming: the scale of the batch norm as the importance of a channel (Liu et al., arXiv 1708.06519)."""

from __future__ import annotations

import numpy as np
from torch import nn

from edgeprune.data.samples import Samples
from edgeprune.pruning.channels import Channels
from edgeprune.pruning.layers import Floats, norms

NEEDS_SAMPLES = False


def score(model: nn.Module, channels: Channels, samples: Samples | None = None) -> Floats:
    """Score each atom by its batch-norm scales.

    Args:
        model: The network.
        channels: Its channels.
        samples: Not used.

    Returns:
        (atoms,) float64: the mean |gamma| over the batch norms that scale the atom; infinite if none does.
    """
    known = norms(model)
    total, count = np.zeros(channels.atoms), np.zeros(channels.atoms)
    for name, atoms in channels.out.items():
        if name in known:
            np.add.at(total, atoms, known[name].weight.detach().abs().double().cpu().numpy())
            np.add.at(count, atoms, 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.inf)
