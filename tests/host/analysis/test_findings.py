"""findings: the recommendation from the measured points."""

from edgeprune.analysis.findings import Advice

from .points import point


def test_recommended_cut_has_no_worse_smaller_cut():
    points = [point(v, k) for v, k in ((0.9, 0.99), (0.8, 0.91), (0.7, 0.85), (0.6, 0.92), (0.5, 0.45), (0.4, 0.55))]
    advice = Advice.of(points)
    assert (advice.recommended, advice.sure, advice.collapse) == (points[1], points[0], points[4])


def test_no_cut_is_recommended_without_a_good_or_known_point():
    assert Advice.of([point(0.9, 0.6), point(0.8, 0.55)]) == Advice(None, None, None)
    assert Advice.of([point(0.9, None)]) == Advice(None, None, None)
