"""scenes: pictures, and boxes that are the bounds of what is seen in them."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from edgeprune.demo import NAMES, dataset, render, scenes
from edgeprune.demo.objects import MAKERS

from .stages import bounds, inner, stage

DIGEST = """
import hashlib
from edgeprune.demo import render
print(*(hashlib.sha256(b"".join(part.tobytes() for part in render(seed))).hexdigest() for seed in range(3)))
"""


def digest(seed: int) -> str:
    return hashlib.sha256(b"".join(part.tobytes() for part in render(seed))).hexdigest()


def test_a_seed_gives_the_same_bytes_in_every_process():
    here = [digest(seed) for seed in range(3)]
    assert here == [digest(seed) for seed in range(3)]
    assert len(set(here)) == 3
    other = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True)
    assert other.stdout.split() == here


def test_shapes_and_ranges():
    picture, boxes = render(5)
    assert picture.shape == (320, 320, 3) and picture.dtype == np.uint8
    assert boxes.ndim == 2 and boxes.shape[1] == 5 and boxes.dtype == np.float32
    assert render(5, size=256)[0].shape == (256, 256, 3)


@pytest.mark.parametrize("seed", range(8))
def test_boxes_are_the_bounds_of_the_visible_pixels(seed):
    _, boxes, ids = scenes.render_with_masks(seed)
    seen = {tuple(bounds(ids == tag)) for tag in np.unique(ids) if tag}
    side = len(ids)
    centre, half = boxes[:, 1:3] * side, boxes[:, 3:5] * side / 2
    for corners in np.concatenate([centre - half, centre + half], axis=1).round().astype(int):
        assert tuple(corners) in seen
    assert (boxes[:, 1:] >= 0).all() and (boxes[:, 1:] <= 1).all()
    assert len(boxes) <= len(seen)


def test_an_object_mostly_hidden_has_no_box():
    ids = np.zeros((640, 640), np.uint8)
    ids[100:140, 200:240] = 1
    ids[300:340, 300:312] = 2
    whole = [(1, 2, 1600), (2, 0, 1600)]  # 100 % and 30 % visible
    boxes = scenes._boxes(ids, whole, 320)
    np.testing.assert_allclose(boxes, [[2, 220 / 640, 120 / 640, 40 / 640, 40 / 640]], rtol=1e-6)


def test_an_object_cut_by_the_edge_counts_whole():
    place = stage(tilt=0.0)
    place.tag = 1
    edge = place.view.ground(320, 160)  # the right edge's middle: half of it is outside
    thing = MAKERS["car"](np.random.default_rng(1), np.array(edge), 0.0)
    thing.paint(place)
    visible, whole = (inner(place) == 1).sum(), (scenes._patch(place, thing) == 1).sum()
    assert 0.3 < visible / whole < 0.7


@pytest.mark.slow  # others that are alike run always
def test_the_validation_scenes_hold_thousands_of_boxes_of_every_class(monkeypatch):
    """At least 4,000 in the 400; counting stops where that is proven."""
    monkeypatch.setattr(scenes, "shoot", lambda rng, canvas, size: canvas)  # the lens comes after the boxes
    found: list[np.ndarray] = []
    for seed in range(dataset.VAL_SEED, dataset.VAL_SEED + 400):
        found.append(render(seed)[1])
        if sum(map(len, found)) >= 4000:
            break
    boxes = np.concatenate(found)
    assert len(boxes) >= 4000
    assert np.bincount(boxes[:, 0].astype(int), minlength=len(NAMES)).min() >= 100
    assert any(len(b) == 0 for b in found)
    side = np.sqrt(boxes[:, 3] * boxes[:, 4]) * 320
    assert np.percentile(side, 5) < 9 and np.percentile(side, 99) > 45  # pixels: small ones, and a wide range
