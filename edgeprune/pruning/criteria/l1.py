"""Group L1: a channel whose weights are small, in all layers that make and read it, says little.

The sum of |w| over every slice (filters, norm scales, the columns of each reader), in units of its group's mean, as
torch-pruning's GroupMagnitudeImportance(p=1, normalizer="mean") has it (DepGraph, arXiv 2301.12900; filters alone:
Li et al., arXiv 1608.08710).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgeprune.pruning.channels import Channels
from edgeprune.pruning.criteria._slices import per_mean_of_group, sums

NEEDS_SAMPLES = False


def score(model: nn.Module, channels: Channels, samples=None) -> np.ndarray:
    """(atoms,) sum of |w| over the atom's slices, divided by the mean of its group."""
    return per_mean_of_group(sums(model, channels, torch.abs), channels)
