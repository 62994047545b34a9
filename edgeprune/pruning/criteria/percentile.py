"""Network Slimming as in the paper: one threshold over the batch-norm scales of the whole network, at the percentile
that the budget asks for (Liu et al., arXiv 1708.06519).

The cost of an atom is its rank, so the channels under the threshold have the least sum of costs. Under `--ratio`,
without rounding and floors, the solution of the budget is the paper's. There `bn_scale`, whose cost is the scale
itself, removes the same channels; where costs are weighed against MACs or parameters it removes others.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from edgeprune.pruning.channels import Channels
from edgeprune.pruning.criteria import bn_scale

NEEDS_SAMPLES = False


def score(model: nn.Module, channels: Channels, samples=None) -> np.ndarray:
    """Score each atom by the rank of its batch-norm scale.

    Args:
        model: The network.
        channels: Its channels.
        samples: Not used.

    Returns:
        (atoms,) float64: the fraction of the network's prunable atoms whose |gamma| is smaller; infinite where no norm
            scales the atom.
    """
    gamma = bn_scale.score(model, channels)
    free = np.concatenate([g.atoms for g in channels.groups if not g.frozen])
    return np.where(np.isfinite(gamma), np.searchsorted(np.sort(gamma[free]), gamma) / len(free), np.inf)
