"""objects: the mask covers the painted pixels."""

import numpy as np
import pytest

from edgeprune.demo import NAMES, scenes
from edgeprune.demo.camera import SUPERSAMPLE
from edgeprune.demo.objects import MAKERS

from .stages import bounds, inner, painted, stage


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("tilt", [0.0, 0.6])
def test_mask_covers_the_painted_pixels_without_the_shadow(kind, tilt):
    for turn in range(6):
        place = stage(tilt=tilt)
        thing = MAKERS[kind](np.random.default_rng(turn), np.array([1.0, -2.0]), turn * 1.1)
        place.tag = 1
        thing.paint(place)
        mask, drawn = inner(place) == 1, painted(place)
        assert np.abs(bounds(mask) - bounds(drawn)).max() <= SUPERSAMPLE  # smoothed edges: one pixel of the image
        assert (mask & drawn).sum() >= 0.97 * mask.sum()
        # The patch, which defines the visible share, contains the whole object.
        assert (scenes._patch(place, thing) == 1).sum() == (place.ids == 1).sum()
