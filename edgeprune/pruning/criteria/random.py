"""Random scores: the baseline of every criterion. The draw is the same every time."""

from __future__ import annotations

import numpy as np
from torch import nn

from edgeprune.pruning.channels import Channels

NEEDS_SAMPLES = False


def score(model: nn.Module, channels: Channels, samples=None) -> np.ndarray:
    """Score each atom at random.

    Args:
        model: The network.
        channels: Its channels.
        samples: Not used.

    Returns:
        (atoms,) float64, uniform in [0, 1).
    """
    return np.random.default_rng(0).random(channels.atoms)
