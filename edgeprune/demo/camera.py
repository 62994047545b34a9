"""The drone's camera: the projection of the world into the image, and the effects of lens, sensor and codec.

The world is in metres: x to the right, y towards the viewer, z up; its origin is the point where the optical axis meets
the ground. The module does not depend on the drawn things.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

#: An image, a texture or a mask: (rows, columns, 3) or (rows, columns).
Raster = npt.NDArray[Any]
#: Points in the world, metres, or on the canvas, px: (n, 2) or (n, 3); a single point has no first axis.
Points = npt.NDArray[np.float64]
SUPERSAMPLE = 2  # objects are drawn at twice the resolution and averaged down


@dataclass(frozen=True)
class CameraView:
    """A pinhole camera above flat ground.

    Example: CameraView(size=320, px_per_m=8, tilt=0.4, half_fov=0.5): a metre at the centre covers 8 pixels of the
    final image, and the optical axis is tilted by 0.4 rad from the vertical.

    Attributes:
        size: The side of the image, px.
        px_per_m: The scale at the centre.
        tilt: The angle of the optical axis from the vertical, radians.
        half_fov: Half the field of view, radians.
    """

    size: int
    px_per_m: float
    tilt: float
    half_fov: float

    @cached_property
    def distance_m(self) -> float:
        """Metres from the lens to the ground along the optical axis."""
        return float(self.size / (2 * self.px_per_m * np.tan(self.half_fov)))

    @cached_property
    def _sin_cos(self) -> tuple[float, float]:
        return float(np.sin(self.tilt)), float(np.cos(self.tilt))

    def project(self, points: Points) -> Points:
        """(n, 3) metres -> (n, 2) pixels of the supersampled canvas."""
        (sin, cos), dist, half = self._sin_cos, self.distance_m, self.size / 2
        x, y, z = points.T
        depth = np.maximum(dist - y * sin - z * cos, 0.15 * dist)
        scale = self.px_per_m * dist / depth
        uv = np.empty((len(points), 2))
        uv[:, 0] = half + x * scale
        uv[:, 1] = half + (y * cos - z * sin) * scale
        uv *= SUPERSAMPLE
        return uv

    def ground(self, u: npt.ArrayLike, v: npt.ArrayLike) -> tuple[Points, Points]:
        """Map pixels of the final image to points on the ground.

        Args:
            u: Columns, px.
            v: Rows, px.

        Returns:
            (x, y), metres.
        """
        (sin, cos), dist = self._sin_cos, self.distance_m
        down = (np.asarray(v, float) - self.size / 2) / (self.px_per_m * dist)
        right = (np.asarray(u, float) - self.size / 2) / (self.px_per_m * dist)
        y = down * dist / (cos + down * sin)
        return right * (dist - y * sin), y

    def ground_map(self) -> tuple[Points, Points]:
        """x and y in metres of every final pixel, each (size, size)."""
        axis = np.arange(self.size) + 0.5
        return self.ground(*np.meshgrid(axis, axis))


def _light(rng: np.random.Generator, picture: Raster) -> Raster:
    """Exposure, colour of the light, contrast, haze, vignetting; (s, s, 3) float32 in 0..255."""
    size = len(picture)
    mood = rng.random()
    if mood < 0.10:  # dusk and night: dark, bluish or under sodium lamps
        picture = picture * rng.uniform(0.28, 0.5)
        tint = np.array([0.85, 0.95, 1.2]) if rng.random() < 0.6 else np.array([1.2, 1.0, 0.7])
    elif mood < 0.25:  # low sun
        tint = np.array([1.12, 1.0, 0.84])
    else:
        tint = rng.uniform(0.93, 1.07, 3)
    picture = picture * (tint * rng.uniform(0.8, 1.2)).astype(np.float32)
    contrast = rng.uniform(0.75, 1.2)
    picture = (picture - 110) * contrast + 110
    if rng.random() < 0.2:  # haze, thicker towards the top of an oblique image
        haze = np.linspace(1.0, rng.uniform(0.3, 1.0), size, dtype=np.float32)[:, None, None] * rng.uniform(0.1, 0.4)
        picture = picture * (1 - haze) + haze * rng.uniform(150, 215)
    if rng.random() < 0.35:
        axis = np.linspace(-1, 1, size, dtype=np.float32) ** 2
        picture = picture * (1 - rng.uniform(0.1, 0.35) * (axis[:, None] + axis) / 2)[..., None]
    if rng.random() < 0.05:
        picture = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2)
    return picture


def _blur(rng: np.random.Generator, picture: Raster) -> Raster:
    """Blur the image by defocus or by the drone's motion, without shifting it."""
    kind = rng.random()
    if kind < 0.30:
        return cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.1))
    if kind < 0.45:
        length, angle = rng.uniform(1.5, 5.0), rng.uniform(0, np.pi)
        kernel = np.zeros((7, 7), np.float32)
        for step in np.linspace(-length / 2, length / 2, 13):
            kernel[round(3 + step * np.sin(angle)), round(3 + step * np.cos(angle))] += 1
        return cv2.filter2D(picture, -1, kernel / kernel.sum())
    return picture


def shoot(rng: np.random.Generator, canvas: Raster, size: int) -> Raster:
    """The image that a small camera would deliver.

    Args:
        rng: The random number generator.
        canvas: (2 size, 2 size, 3) uint8.
        size: The side of the image, px.

    Returns:
        (size, size, 3) uint8.
    """
    picture = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    picture = _blur(rng, _light(rng, picture))
    if rng.random() < 0.8:
        sigma = rng.gamma(1.5, 2.5)
        grain = rng.standard_normal((size, size), dtype=np.float32)
        picture = picture + (grain * sigma)[..., None]
        if sigma > 5:  # strong noise has colour
            picture = picture + rng.standard_normal((size, size, 3), dtype=np.float32) * (sigma * 0.5)
    out = np.clip(picture, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        quality = int(rng.integers(35, 92))
        return _decoded(cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])
    return out


def _decoded(data: npt.NDArray[np.uint8]) -> Raster:
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if picture is None:
        raise RuntimeError("OpenCV: cannot decode its own JPEG; install a build with JPEG support")
    return picture
