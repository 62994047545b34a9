"""Network Slimming as in the paper: one threshold over the batch-norm scales of the whole network, at the percentile
that the budget requires (Liu et al., arXiv 1708.06519).

The cost of an atom is its rank, so the channels under the threshold have the least sum of costs. Under a budget of kind
`ratio`, without rounding and floors, the solution equals the paper's. In that case `bn_scale`, whose cost is the scale
itself, removes the same channels; it removes others if costs are weighed against MACs or parameters.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from edgeprune.data.samples import Samples
from edgeprune.pruning.channels import Channels
from edgeprune.pruning.criteria import bn_scale
from edgeprune.pruning.layers import Floats

NEEDS_SAMPLES = False


def score(model: nn.Module, channels: Channels, samples: Samples | None = None) -> Floats:
    """Score each atom by the rank of its batch-norm scale.

    Args:
        model: The network.
        channels: Its channels.
        samples: Not used.

    Returns:
        (atoms,) float64: the fraction of the network's prunable atoms whose |gamma| is smaller; infinite if no norm
            scales the atom.
    """
    gamma = bn_scale.score(model, channels)
    free = np.concatenate([g.atoms for g in channels.groups if not g.frozen])
    return np.where(np.isfinite(gamma), np.searchsorted(np.sort(gamma[free]), gamma) / len(free), np.inf)
