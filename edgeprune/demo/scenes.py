"""Scenes seen from a drone, made by number: `render(seed)` gives an image and the boxes of the objects in it.

A box bounds the *visible* pixels of an object: without its shadow, cut at the image's edge and by any object that hides
it. Objects of which less than VISIBLE_MIN shows have no box. The same seed gives the same bytes with the same versions
of numpy and OpenCV.
"""

from __future__ import annotations

import numpy as np

from edgeprune.demo.camera import SUPERSAMPLE, CameraView, shoot
from edgeprune.demo.layouts import LAYOUTS, SitePlan, compose
from edgeprune.demo.solids import MARGIN, Stage, Thing

NAMES = ("person", "cycle", "car", "truck", "bus")
VERSION = 1  # raise it with any change that alters an image or a box, so that no stored set passes for a new one
VISIBLE_MIN = 0.35
SIDE_MIN_PX = 3.0  # of the final image: smaller objects are drawn but not labelled


def _stand(rng: np.random.Generator, stage: Stage, plan: SitePlan) -> list[tuple[int, int, int]]:
    """Draw all things, far ones first; return (tag, class, pixels drawn before another thing hid them)."""
    for thing in plan.things:
        stage.cast(thing.base, thing.height)
    stage.lay_shadows(rng.uniform(0.25, 0.62) * (0.4 if rng.random() < 0.25 else 1), (1.0, 0.96, 0.86))
    drawn: list[tuple[int, int, int]] = []
    shades = _shades(stage, plan.things)
    for thing in sorted(plan.things, key=lambda t: t.centre[1] + t.over):
        stage.tag = len(drawn) + 1 if thing.kind and len(drawn) < 250 else 0
        if thing.kind and not stage.tag:
            continue
        stage.light = 0.72 if thing.kind and _shaded(shades, thing.centre) else 1.0
        thing.paint(stage)
        if stage.tag:
            area = int((_patch(stage, thing) == stage.tag).sum())
            drawn.append((stage.tag, NAMES.index(thing.kind), area))
    return drawn


def _shades(stage: Stage, things: list[Thing]) -> np.ndarray:
    """(n, 5) metres: start x, y, vector x, y and radius of the shadows of tall things, taken as capsules."""
    rows = [
        (*t.centre, *(stage.away * t.height), np.hypot(*(t.base - t.centre).T).mean() * 0.9)
        for t in things
        if t.kind is None and t.height > 2.5
    ]
    return np.array(rows).reshape(-1, 5)


def _shaded(shades: np.ndarray, where: np.ndarray) -> bool:
    """Whether a point (2,) in metres lies in one of those shadows."""
    start, line = where - shades[:, :2], shades[:, 2:4]
    along = np.clip((start * line).sum(1) / ((line * line).sum(1) + 1e-9), 0, 1)
    return bool((np.hypot(*(start - line * along[:, None]).T) < shades[:, 4]).any())


def _patch(stage: Stage, thing: Thing) -> np.ndarray:
    """The part of the id mask in which a thing can have been drawn."""
    n = len(thing.base)
    base = np.zeros((2 * n, 3))
    base[:n, :2] = base[n:, :2] = (thing.base - thing.centre) * 1.5 + thing.centre
    base[n:, 2] = thing.height + 1.2
    uv = stage.view.project(base) + MARGIN
    (x0, y0), (x1, y1) = np.maximum(uv.min(0).astype(int) - 6, 0), np.maximum(uv.max(0).astype(int) + 7, 0)
    return stage.ids[y0:y1, x0:x1]


def _boxes(ids: np.ndarray, drawn: list[tuple[int, int, int]], size: int) -> np.ndarray:
    """(n, 5) float32 [class, cx, cy, w, h], normalised, of the objects that are visible enough.

    Args:
        ids: (2 size, 2 size) uint8, the object at each canvas pixel.
        drawn: As `_stand` returns it.
        size: The side of the image, px.
    """
    count = np.bincount(ids.ravel(), minlength=256)
    rows, scale = [], SUPERSAMPLE * size
    v, u = (index.astype(np.int16) for index in np.nonzero(ids))
    order = np.argsort(tags := ids[v, u], kind="stable")
    starts = np.searchsorted(tags[order], np.arange(257))
    v, u = v[order], u[order]
    for tag, cls, area in drawn:
        if not area or count[tag] < VISIBLE_MIN * area:
            continue
        own = slice(starts[tag], starts[tag + 1])
        x0, x1, y0, y1 = int(u[own].min()), int(u[own].max()) + 1, int(v[own].min()), int(v[own].max()) + 1
        if min(x1 - x0, y1 - y0) < SIDE_MIN_PX * SUPERSAMPLE:
            continue
        rows.append((cls, (x0 + x1) / 2 / scale, (y0 + y1) / 2 / scale, (x1 - x0) / scale, (y1 - y0) / scale))
    return np.array(rows, np.float32).reshape(-1, 5)


def render_with_masks(seed: int, size: int = 320) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Render a scene, as `render` does, with its object mask.

    Returns:
        (image, boxes, mask); the mask is (2 size, 2 size) uint8, the object at each canvas pixel, 0 for none.
    """
    rng = np.random.default_rng(seed)
    names = list(LAYOUTS)
    layout = names[rng.choice(len(names), p=[LAYOUTS[n].share for n in names])]
    low, high = np.log(LAYOUTS[layout].px_per_m)
    scale = float(np.exp(rng.uniform(low, high))) * size / 320
    view = CameraView(
        size,
        scale,
        tilt=float(rng.choice([0.0, 1.0], p=[0.2, 0.8]) * rng.uniform(0.05, 0.75)),
        half_fov=float(rng.uniform(0.42, 0.62)),
    )
    canvas, plan = compose(rng, view, layout)
    stage = Stage(canvas, view, float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.2, 1.6)))
    drawn = _stand(rng, stage, plan)
    ids = stage.ids[MARGIN:-MARGIN, MARGIN:-MARGIN]
    return shoot(rng, canvas, size), _boxes(ids, drawn, size), ids


def render(seed: int, size: int = 320) -> tuple[np.ndarray, np.ndarray]:
    """Render the scene of a number.

    Args:
        seed: The number.
        size: The side of the image, px.

    Returns:
        (image, boxes): (size, size, 3) uint8 RGB, and (n, 5) float32 [class, cx, cy, w, h] with the class as an index
            into NAMES and the rest in fractions of the image's side.
    """
    picture, boxes, _ = render_with_masks(seed, size)
    return picture, boxes
