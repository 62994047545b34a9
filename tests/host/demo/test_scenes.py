"""scenes: images, and boxes that bound the visible pixels."""

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


def test_seed_gives_the_same_bytes_in_every_process():
    here = [digest(seed) for seed in range(3)]
    assert here == [digest(seed) for seed in range(3)]
    assert len(set(here)) == 3
    other = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True)
    assert other.stdout.split() == here


def test_render_returns_the_documented_shapes():
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


@pytest.mark.parametrize("seed", range(8))
def test_oriented_boxes_are_the_smallest_rectangles_around_the_visible_pixels(seed):
    """Of the same objects as the upright ones: every pixel is inside, and each side touches one."""
    _, boxes, ids = scenes.render_with_masks(seed, task="obb")
    _, upright, _ = scenes.render_with_masks(seed)
    side, turned = len(ids), 0
    assert boxes.shape[1] == 9 and boxes[:, 0].tolist() == upright[:, 0].tolist()
    assert (boxes[:, 1:] >= -scenes.EDGE).all() and (boxes[:, 1:] <= 1 + scenes.EDGE).all()
    centres = upright[:, 1:3] * side
    masks = {tuple(bounds(ids == tag)): np.argwhere(ids == tag)[:, ::-1] + 0.5 for tag in np.unique(ids) if tag}
    for row, centre, size in zip(boxes, centres, upright[:, 3:5] * side):
        pixels = masks[tuple(np.concatenate([centre - size / 2, centre + size / 2]).round().astype(int))]
        corners = row[1:].reshape(4, 2).astype(float) * side
        sides = np.roll(corners, -1, axis=0) - corners
        lengths = np.linalg.norm(sides, axis=1)
        assert abs((sides[0] @ sides[1]) / (lengths[0] * lengths[1])) < 1e-2  # a right angle
        outward = np.stack([sides[:, 1], -sides[:, 0]], axis=1) / lengths[:, None]
        outward *= np.sign(((corners - corners.mean(0)) * outward).sum(1))[:, None]
        beyond = (pixels[:, None] - corners) * outward
        nearest = beyond.sum(2).max(0)  # of each side; a pixel's square reaches up to 0.71 px from its centre
        assert (nearest < 0).all() and (nearest > -0.8).all()
        turned += lengths[0] * lengths[1] < 0.9 * size.prod()
    # A scene of parked cars along the axes has no oriented box that is smaller than the upright one.
    assert seed == 6 or turned > 0


def test_mostly_hidden_object_has_no_box():
    ids = np.zeros((640, 640), np.uint8)
    ids[100:140, 200:240] = 1
    ids[300:340, 300:312] = 2
    whole = [(1, 2, 1600), (2, 0, 1600)]  # 100 % and 30 % visible
    boxes = scenes._boxes(ids, whole, 320)
    np.testing.assert_allclose(boxes, [[2, 220 / 640, 120 / 640, 40 / 640, 40 / 640]], rtol=1e-6)


def test_visible_share_of_a_cut_object_counts_the_part_outside():
    place = stage(tilt=0.0)
    place.tag = 1
    edge = place.view.ground(320, 160)  # the middle of the right edge, so that half of the car is outside
    thing = MAKERS["car"](np.random.default_rng(1), np.array(edge), 0.0)
    thing.paint(place)
    visible, whole = (inner(place) == 1).sum(), (scenes._patch(place, thing) == 1).sum()
    assert 0.3 < visible / whole < 0.7


@pytest.mark.slow  # similar tests always run
def test_validation_scenes_hold_thousands_of_boxes_and_every_class(monkeypatch):
    """At least 4,000 boxes in the 400 scenes; counting stops when they are reached."""
    monkeypatch.setattr(scenes, "shoot", lambda rng, canvas, size: canvas)  # the boxes do not depend on the lens
    per_scene: list[np.ndarray] = []
    for seed in range(dataset.VAL_SEED, dataset.VAL_SEED + 400):
        per_scene.append(render(seed)[1])
        if sum(map(len, per_scene)) >= 4000:
            break
    boxes = np.concatenate(per_scene)
    assert len(boxes) >= 4000
    assert np.bincount(boxes[:, 0].astype(int), minlength=len(NAMES)).min() >= 100
    assert any(len(b) == 0 for b in per_scene)
    side = np.sqrt(boxes[:, 3] * boxes[:, 4]) * 320
    assert np.percentile(side, 5) < 9 and np.percentile(side, 99) > 45  # pixels: small ones, and a wide range
