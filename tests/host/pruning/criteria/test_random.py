"""random: a fixed draw."""

import numpy as np

from edgeprune.pruning import criteria
from edgeprune.pruning.channels import trace


def test_random_draws_the_same_scores_every_time(small):
    channels = trace(small)
    first, second = (criteria.load("random")(small, channels, None) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.random.seed(7)  # the global generator has no effect
    np.testing.assert_array_equal(first, criteria.load("random")(small, channels, None))
