"""Group L1: the sum of the absolute weights of a channel in all layers that make and read it.

It is the sum of |w| over every slice (filters, norm scales, the columns of each reader), in units of its group's mean,
as in torch-pruning's GroupMagnitudeImportance(p=1, normalizer="mean") (DepGraph, arXiv 2301.12900; filters alone: Li et
al., arXiv 1608.08710).
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
    """Score each atom by its absolute weights.

    Args:
        model: The network.
        channels: Its channels.
        samples: Not used.

    Returns:
        (atoms,) float64: the sum of |w| over the atom's slices, divided by the mean of its group.
    """
    return per_mean_of_group(sums(model, channels, torch.abs), channels)
