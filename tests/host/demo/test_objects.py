"""objects: the mask is what was painted."""

import numpy as np
import pytest

from edgeprune.demo import NAMES, scenes
from edgeprune.demo.camera import SUPERSAMPLE
from edgeprune.demo.objects import MAKERS

from .stages import bounds, inner, painted, stage


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("tilt", [0.0, 0.6])
def test_the_mask_is_what_was_painted_and_no_shadow(kind, tilt):
    for turn in range(6):
        place = stage(tilt=tilt)
        thing = MAKERS[kind](np.random.default_rng(turn), np.array([1.0, -2.0]), turn * 1.1)
        place.tag = 1
        thing.paint(place)
        mask, drawn = inner(place) == 1, painted(place)
        assert np.abs(bounds(mask) - bounds(drawn)).max() <= SUPERSAMPLE  # smoothed edges: one pixel of the picture
        assert (mask & drawn).sum() >= 0.97 * mask.sum()
        # What counts as the whole object, for the share that is visible, is all of it.
        assert (scenes._patch(place, thing) == 1).sum() == (place.ids == 1).sum()
