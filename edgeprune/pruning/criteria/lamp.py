"""LAMP: a squared norm as a share of the sum that remains after all smaller ones are removed (arXiv 2010.07611).

The paper scores single weights in a layer; this criterion scores channels in a group, by the squared norm over all
slices as in `l2`. It needs no scale between layers, and the last channel of a layer is never cheap.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgeprune.data.samples import Samples
from edgeprune.pruning.channels import Channels
from edgeprune.pruning.criteria._slices import TINY, sums
from edgeprune.pruning.layers import Floats

NEEDS_SAMPLES = False


def score(model: nn.Module, channels: Channels, samples: Samples | None = None) -> Floats:
    """Score each atom by its share of the remaining squared weights.

    Args:
        model: The network.
        channels: Its channels.
        samples: Not used.

    Returns:
        (atoms,) float64 in [0, 1]; the largest score of each group is 1.
    """
    scores = sums(model, channels, torch.square)
    for group in channels.groups:
        rising = group.atoms[np.argsort(scores[group.atoms], kind="stable")]
        left = np.cumsum(scores[rising][::-1])[::-1]  # the sum of this score and all larger ones
        scores[rising] /= np.maximum(left, TINY)
    return scores
