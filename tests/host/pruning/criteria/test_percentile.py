"""percentile: one threshold over all gammas."""

import numpy as np

from edgeprune.pruning import criteria
from edgeprune.pruning.channels import trace


def test_percentile_equals_one_threshold_over_all_gammas(small):
    channels = trace(small)
    gamma = criteria.load("bn_scale")(small, channels, None)
    scores = criteria.load("percentile")(small, channels, None)
    free = np.concatenate([g.atoms for g in channels.groups if not g.frozen])
    for count in (len(free) // 10, len(free) // 3, len(free) * 2 // 3):
        threshold = np.sort(gamma[free])[count]
        cheapest = np.argsort(scores[free], kind="stable")[:count]
        np.testing.assert_array_equal(np.sort(cheapest), np.flatnonzero(gamma[free] < threshold))
    assert np.isinf(scores[np.isinf(gamma)]).all()
