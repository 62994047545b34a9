"""tradeoff: the Pareto front."""

import numpy as np

from edgeprune.comparison.page import tradeoff


def test_front_holds_the_points_that_no_other_beats():
    rng = np.random.default_rng(0)
    points = [(float(a), float(b)) for a, b in rng.uniform(size=(60, 2)).round(1)]
    kept = [points[i] for i in tradeoff.front(points)]

    def beaten(p):
        return any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)

    assert set(kept) == {p for p in points if not beaten(p)}
    assert kept == sorted(kept) and len(set(kept)) == len(kept)
