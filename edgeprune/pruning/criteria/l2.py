"""Group L2: like `l1`, with squares, which add up: the cost of several channels is the squared norm of their weights.

In units of the group's mean, as in torch-pruning's GroupMagnitudeImportance(p=2, normalizer="mean") (DepGraph, arXiv
2301.12900).
"""

from __future__ import annotations

import torch
from torch import nn

from edgeprune.data.samples import Samples
from edgeprune.pruning.channels import Channels
from edgeprune.pruning.criteria._slices import per_mean_of_group, sums
from edgeprune.pruning.layers import Floats

NEEDS_SAMPLES = False


def score(model: nn.Module, channels: Channels, samples: Samples | None = None) -> Floats:
    """Score each atom by its squared weights.

    Args:
        model: The network.
        channels: Its channels.
        samples: Not used.

    Returns:
        (atoms,) float64: the sum of w^2 over the atom's slices, divided by the mean of its group.
    """
    return per_mean_of_group(sums(model, channels, torch.square), channels)
