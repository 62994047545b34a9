"""Small solids in perspective: the stage on which they are drawn, and their shapes.

Pixels drawn while `stage.tag` is set belong to that labelled object; all other pixels hide the objects behind them.
The module does not depend on the objects that the solids form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from edgeprune.demo.camera import CameraView, Points, Raster

#: Red, green and blue, each in 0..255.
Colour = tuple[float, float, float]
#: Transforms points of an object, (n, 2) in its own coordinates, metres, into the world: `local` at a place and
#: heading.
At = Callable[[npt.ArrayLike], Points]

MARGIN = 128  # canvas pixels of the mask around the image, so that objects cut by the edge are recognised


def local(centre: Points, heading: float, points: npt.ArrayLike) -> Points:
    """Transform points of an object into the world.

    Args:
        centre: (2,) metres.
        heading: Radians.
        points: (n, 2) in the object's own coordinates, metres, x forward.

    Returns:
        (n, 2) metres.
    """
    sin, cos = math.sin(heading), math.cos(heading)
    turned: Points = np.asarray(points, float) @ np.array([[cos, sin], [-sin, cos]])
    return turned + centre


def rect(x0: float, x1: float, width: float, chamfer: float = 0.0) -> list[tuple[float, float]]:
    """The corners of a rectangle from x0 to x1, centred on y = 0, with cut corners.

    Args:
        x0: Metres.
        x1: Metres.
        width: Metres.
        chamfer: The size of the cut, metres.
    """
    half, c = width / 2, chamfer
    if c <= 0:
        return [(x0, -half), (x1, -half), (x1, half), (x0, half)]
    return [
        (x0 + c, -half),
        (x1 - c, -half),
        (x1, -half + c),
        (x1, half - c),
        (x1 - c, half),
        (x0 + c, half),
        (x0, half - c),
        (x0, -half + c),
    ]


def disc(radius_x: float, radius_y: float, corners: int = 8) -> Points:
    """Points of an ellipse around the origin.

    Args:
        radius_x: Metres.
        radius_y: Metres.
        corners: The number of points.

    Returns:
        (corners, 2).
    """
    a = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(a) * radius_x, np.sin(a) * radius_y], 1)


def shade(colour: Colour, factor: float) -> Colour:
    """A colour, darker or lighter, kept in 0..255."""
    r, g, b = colour
    return min(255.0, r * factor), min(255.0, g * factor), min(255.0, b * factor)


@cache
def _side_index(corners: int) -> npt.NDArray[np.int64]:
    """(corners, 4): the points of a prism, base first, then top, that bound each side."""
    i = np.arange(corners)
    j = (i + 1) % corners
    return np.column_stack([i, j, j + corners, i + corners])


class Stage:
    """The canvas, the masks that go with it, the camera and the sun.

    Args:
        canvas: (2s, 2s, 3) uint8.
        view: The camera.
        sun_azimuth: Direction of the shadows, radians.
        sun_slope: Length of the shadow of 1 m of height, metres.

    Attributes:
        ids: (2s + 2 MARGIN, 2s + 2 MARGIN) uint8, the labelled object that owns a pixel; 0 for none.
        shadow: (2s, 2s) uint8, the shadows on the ground.
        tag: The labelled object that is being drawn; 0 for none.
        light: A factor for all colours.
    """

    def __init__(self, canvas: Raster, view: CameraView, sun_azimuth: float, sun_slope: float):
        self.canvas, self.view = canvas, view
        self.side = len(canvas)
        self.ids = np.zeros((self.side + 2 * MARGIN,) * 2, np.uint8)
        self.shadow = np.zeros((self.side,) * 2, np.uint8)
        self.away = np.array([np.cos(sun_azimuth), np.sin(sun_azimuth)]) * sun_slope  # shadow vector for 1 m of height
        self.sun = (-float(np.cos(sun_azimuth)), -float(np.sin(sun_azimuth)))
        self.tag = 0
        self.light = 1.0

    def fill(self, uv: Points, colour: Colour) -> None:
        """Fill one convex polygon, (n, 2) canvas pixels."""
        self._fill(np.rint(uv * 8).astype(np.int32), colour, self.light)

    def _fill(self, points: npt.NDArray[np.int32], colour: Colour, light: float) -> None:
        cv2.fillConvexPoly(self.canvas, points, shade(colour, light), cv2.LINE_AA, 3)
        cv2.fillConvexPoly(self.ids, points + MARGIN * 8, self.tag, cv2.LINE_8, 3)

    def flat(self, polygon: Points, z: float, colour: Colour) -> None:
        """Fill a horizontal convex polygon, (n, 2) metres, at height z."""
        points = np.empty((len(polygon), 3))
        points[:, :2], points[:, 2] = polygon, z
        self.fill(self.view.project(points), colour)

    def prism(
        self,
        base: Points,
        z0: float,
        z1: float,
        colour: Colour,
        *,
        roof: Colour | None = None,
        taper: float = 1.0,
        side: Colour | None = None,
    ) -> None:
        """Draw a convex solid; the sun shades its sides.

        Args:
            base: (n, 2) metres.
            z0: The height of the base, metres.
            z1: The height of the roof, metres.
            colour: The colour of the solid.
            roof: The colour of the roof; None for `colour`.
            taper: The scale of the roof against the base.
            side: The colour of the sides; None for `colour`.
        """
        n = len(base)
        points = np.empty((2 * n, 3))
        points[:n, :2], points[:n, 2], points[n:, 2] = base, z0, z1
        points[n:, :2] = base if taper == 1.0 else base * taper + base.sum(axis=0) * ((1 - taper) / n)
        fixed = np.rint(self.view.project(points) * 8).astype(np.int32)
        faces = fixed[_side_index(n)]
        (ax, ay), (ux, uy) = (faces[:, 1] - faces[:, 0]).T, (faces[:, 3] - faces[:, 0]).T
        wall = side or colour
        for i in (ax * uy - ay * ux > 0).nonzero()[0].tolist():  # the others face away from the camera
            (x0, y0), (x1, y1) = base[i].tolist(), base[(i + 1) % n].tolist()
            ex, ey = x1 - x0, y1 - y0
            lit = 0.66 + 0.22 * (ey * self.sun[0] - ex * self.sun[1]) / (math.hypot(ex, ey) + 1e-9)
            self._fill(faces[i], wall, lit * self.light)
        self._fill(fixed[n:], roof or colour, self.light)

    def cast(self, base: Points, height: float) -> None:
        """Add the ground shadow of an upright solid of that height."""
        far = base + self.away * height
        points = np.zeros((2 * len(base), 3))
        points[:, :2] = np.concatenate([base, far])
        uv = self.view.project(points)
        hull = cv2.convexHull(np.round(uv * 8).astype(np.int32))
        cv2.fillConvexPoly(self.shadow, hull, 255, cv2.LINE_AA, 3)

    def lay_shadows(self, strength: float, tint: Colour) -> None:
        """Darken the ground under all shadows cast so far."""
        soft = cv2.blur(self.shadow, (3, 3))
        dark = cv2.merge([cv2.convertScaleAbs(soft, alpha=strength * t) for t in tint])
        self.canvas[:] = cv2.multiply(self.canvas, 255 - dark, scale=1 / 255)


def pick(rng: np.random.Generator, colours: Sequence[Colour], jitter: float = 14) -> Colour:
    """A colour from a palette, with a small random deviation."""
    r, g, b = np.clip(np.array(colours[int(rng.integers(len(colours)))]) + rng.normal(0, jitter, 3), 4, 250).tolist()
    return r, g, b


class Thing:
    """A thing to draw.

    Attributes:
        kind: Its class; None for clutter.
        centre: (2,) metres.
        base: Its footprint, (n, 2) metres.
        height: Metres.
        paint: Draws it on a stage.
        over: A shift in the painter's order, metres; larger values are drawn later.
    """

    __slots__ = ("base", "centre", "height", "kind", "over", "paint")

    def __init__(
        self,
        kind: str | None,
        centre: Points,
        base: Points,
        height: float,
        paint: Callable[[Stage], None],
        over: float = 0.0,
    ) -> None:
        self.kind, self.centre, self.base, self.height, self.paint = kind, np.asarray(centre), base, height, paint
        self.over = over
