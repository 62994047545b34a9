"""findings: what is recommended of what was measured."""

from edgeprune.analysis.findings import Advice

from .rungs import rung


def test_the_largest_cut_in_an_unbroken_row():
    rungs = [rung(v, k) for v, k in ((0.9, 0.99), (0.8, 0.91), (0.7, 0.85), (0.6, 0.92), (0.5, 0.45), (0.4, 0.55))]
    advice = Advice.of(rungs)
    assert (advice.recommended, advice.sure, advice.collapse) == (rungs[1], rungs[0], rungs[4])


def test_no_recommendation_where_nothing_holds_or_nothing_is_known():
    assert Advice.of([rung(0.9, 0.6), rung(0.8, 0.55)]) == Advice(None, None, None)
    assert Advice.of([rung(0.9, None)]) == Advice(None, None, None)
