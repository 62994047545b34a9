"""Draws drone scenes by number: `render(seed)` gives an image and the boxes of the objects in it.

A box bounds the *visible* pixels of an object: without its shadow, and without the parts outside the image or behind
other objects. An oriented box is the smallest rectangle around these pixels, or the upright one where that would reach
beyond the image. Objects whose visible share is below VISIBLE_MIN have no box. The same seed gives the same bytes with
the same versions of numpy and OpenCV.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np
import numpy.typing as npt

from edgeprune.demo.camera import SUPERSAMPLE, CameraView, Points, Raster, shoot
from edgeprune.demo.layouts import LAYOUTS, SitePlan, compose
from edgeprune.demo.solids import MARGIN, Stage, Thing

NAMES = ("person", "cycle", "car", "truck", "bus")
VERSION = 1  # raise it when an image or a box changes, so that stored data sets are written again
VISIBLE_MIN = 0.35
SIDE_MIN_PX = 3.0  # in the final image; smaller objects are drawn but not labelled
EDGE = 0.01  # share of the image's side by which an oriented box may reach beyond it, as label files allow


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


def _shades(stage: Stage, things: list[Thing]) -> Points:
    """(n, 5) metres: start x, y, vector x, y and radius of the shadows of tall things, taken as capsules."""
    rows = [
        (*t.centre, *(stage.away * t.height), np.hypot(*(t.base - t.centre).T).mean() * 0.9)
        for t in things
        if t.kind is None and t.height > 2.5
    ]
    return np.array(rows).reshape(-1, 5)


def _shaded(shades: Points, where: Points) -> bool:
    """Whether a point (2,) in metres lies in one of the shadows of `_shades`."""
    start, line = where - shades[:, :2], shades[:, 2:4]
    along = np.clip((start * line).sum(1) / ((line * line).sum(1) + 1e-9), 0, 1)
    return bool((np.hypot(*(start - line * along[:, None]).T) < shades[:, 4]).any())


def _patch(stage: Stage, thing: Thing) -> Raster:
    """The part of the id mask that a thing can cover."""
    n = len(thing.base)
    base = np.zeros((2 * n, 3))
    base[:n, :2] = base[n:, :2] = (thing.base - thing.centre) * 1.5 + thing.centre
    base[n:, 2] = thing.height + 1.2
    uv = stage.view.project(base) + MARGIN
    (x0, y0), (x1, y1) = np.maximum(uv.min(0).astype(int) - 6, 0), np.maximum(uv.max(0).astype(int) + 7, 0)
    return stage.ids[y0:y1, x0:x1]


#: The canvas pixels of an object, u and v.
_Pixels = tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]


def _visible(ids: Raster, drawn: list[tuple[int, int, int]]) -> Iterator[tuple[int, _Pixels]]:
    """(class, pixels) of each object that is labelled.

    Args:
        ids: (2 size, 2 size) uint8, the object at each canvas pixel.
        drawn: The result of `_stand`.
    """
    count = np.bincount(ids.ravel(), minlength=256)
    v, u = (index.astype(np.int16) for index in np.nonzero(ids))
    order = np.argsort(tags := ids[v, u], kind="stable")
    starts = np.searchsorted(tags[order], np.arange(257))
    v, u = v[order], u[order]
    for tag, cls, area in drawn:
        if not area or count[tag] < VISIBLE_MIN * area:
            continue
        own = slice(starts[tag], starts[tag + 1])
        if min(int(np.ptp(u[own])) + 1, int(np.ptp(v[own])) + 1) >= SIDE_MIN_PX * SUPERSAMPLE:
            yield cls, (u[own], v[own])


def _upright(pixels: _Pixels, side: int) -> list[float]:
    """[cx, cy, w, h] of an object, px of a canvas with this side."""
    u, v = pixels
    x0, x1, y0, y1 = int(u.min()), int(u.max()) + 1, int(v.min()), int(v.max()) + 1
    return [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]


def _oriented(pixels: _Pixels, side: int) -> list[float]:
    """The four corners of an object, [x1, y1, … x4, y4], px of a canvas with this side."""
    hull = cv2.convexHull(np.stack(pixels, 1).astype(np.int32)).reshape(-1, 1, 2)
    squares = hull + np.array([[[0, 0], [1, 0], [1, 1], [0, 1]]])  # a pixel covers a square
    corners = cv2.boxPoints(cv2.minAreaRect(squares.reshape(-1, 2).astype(np.float32)))
    if corners.min() < -EDGE * side or corners.max() > (1 + EDGE) * side:
        cx, cy, w, h = _upright(pixels, side)
        corners = np.array([[cx - w / 2, cy - h / 2], [cx + w / 2, cy - h / 2], [cx + w / 2, cy + h / 2],
                            [cx - w / 2, cy + h / 2]])  # fmt: skip
    values: list[float] = corners.reshape(-1).tolist()
    return values


#: {task: the label of an object without its class, px of a canvas with this side}.
LABELS: dict[str, Callable[[_Pixels, int], list[float]]] = {"detect": _upright, "obb": _oriented}


def _boxes(ids: Raster, drawn: list[tuple[int, int, int]], size: int, task: str = "detect") -> npt.NDArray[np.float32]:
    """(n, 1 + values) float32 [class, label], normalised, of the sufficiently visible objects.

    Args:
        ids: (2 size, 2 size) uint8, the object at each canvas pixel.
        drawn: The result of `_stand`.
        size: The side of the image, px.
        task: A key of LABELS.
    """
    side = SUPERSAMPLE * size
    rows = [(cls, *(value / side for value in LABELS[task](pixels, side))) for cls, pixels in _visible(ids, drawn)]
    return np.array(rows, np.float32) if rows else np.zeros((0, 5), np.float32)


def render_with_masks(
    seed: int, size: int = 320, task: str = "detect"
) -> tuple[Raster, npt.NDArray[np.float32], Raster]:
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
    return shoot(rng, canvas, size), _boxes(ids, drawn, size, task), ids


def render(seed: int, size: int = 320, task: str = "detect") -> tuple[Raster, npt.NDArray[np.float32]]:
    """Render the scene with a number.

    Args:
        seed: The number of the scene.
        size: The side of the image, px.
        task: A key of LABELS.

    Returns:
        (image, boxes): (size, size, 3) uint8 RGB, and (n, 5) float32 [class, cx, cy, w, h] or (n, 9) [class, x1, y1, …
            x4, y4] with the class as an index into NAMES and the rest in fractions of the image's side.
    """
    picture, boxes, _ = render_with_masks(seed, size, task)
    return picture, boxes
