"""lamp: the share of the remaining sum."""

import numpy as np
import torch

from edgeprune.pruning import criteria
from edgeprune.pruning.channels import trace
from edgeprune.pruning.criteria._slices import sums


def test_lamp_is_the_share_of_the_remaining_sum(small):
    channels = trace(small)
    scores = criteria.load("lamp")(small, channels, None)
    squares = sums(small, channels, torch.square)
    for group in channels.groups:
        values = squares[group.atoms]
        expected = [v / values[values >= v].sum() for v in values]  # all values differ here
        np.testing.assert_allclose(scores[group.atoms], expected, rtol=1e-9)
