"""distribution: the corners of the curves."""

import numpy as np
import pytest

from edgeprune.comparison.page import distribution


def test_curve_has_every_step_of_few_samples_and_the_shape_of_many():
    few = np.sort(np.random.default_rng(1).lognormal(size=40))
    corners = distribution.steps(few)
    assert [ms for ms, _ in corners[1::2]] == few.tolist()
    assert [share for _, share in corners[1::2]] == pytest.approx(np.arange(1, 41) / 40)
    many = np.sort(np.random.default_rng(2).lognormal(size=10_000))
    corners = distribution.steps(many)
    assert len(corners) < 700
    assert corners[0] == (many[0], 0.0) and corners[-1] == (many[-1], 1.0)
    drawn = np.interp(many, *np.array(corners).T)
    assert np.abs(drawn - np.arange(1, 10_001) / 10_000).max() < 0.006
    assert set(many[-40:]) <= {ms for ms, _ in corners}, "the tail is complete"
