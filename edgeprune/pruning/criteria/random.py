"""Random scores: the baseline for every criterion, from a fixed seed."""

from __future__ import annotations

import numpy as np
from torch import nn

from edgeprune.data.samples import Samples
from edgeprune.pruning.channels import Channels
from edgeprune.pruning.layers import Floats

NEEDS_SAMPLES = False


def score(model: nn.Module, channels: Channels, samples: Samples | None = None) -> Floats:
    """Score each atom at random.

    Args:
        model: The network.
        channels: Its channels.
        samples: Not used.

    Returns:
        (atoms,) float64, uniform in [0, 1).
    """
    return np.random.default_rng(0).random(channels.atoms)
