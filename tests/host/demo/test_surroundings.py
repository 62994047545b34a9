"""surroundings: unlabelled things."""

import cv2
import numpy as np

from edgeprune.demo.surroundings import CLUTTER, building, clutter, tree

from .stages import inner, painted, stage


def test_unlabelled_things_hide_the_objects_behind_them():
    rng = np.random.default_rng(0)
    covers = [clutter(rng, np.zeros(2), 0.3, kind) for kind in CLUTTER]
    covers += [tree(rng, np.zeros(2), 2.0, 3.0), building(rng, np.zeros(2), 0.4, 9, 7)]
    for thing in covers:
        assert thing.kind is None
        place = stage()
        place.ids[:] = 7
        thing.paint(place)
        solid = cv2.erode(painted(place).astype(np.uint8), np.ones((3, 3))) == 1  # without its smoothed edge
        assert (inner(place)[solid] == 0).mean() > 0.97
