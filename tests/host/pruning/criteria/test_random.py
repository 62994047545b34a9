"""random: the same draw every time."""

import numpy as np

from edgeprune.pruning import criteria
from edgeprune.pruning.channels import trace


def test_random_is_the_same_draw_every_time(small):
    channels = trace(small)
    first, second = (criteria.load("random")(small, channels, None) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.random.seed(7)  # what others do with the global generator is no matter
    np.testing.assert_array_equal(first, criteria.load("random")(small, channels, None))
