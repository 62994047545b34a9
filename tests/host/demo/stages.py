"""An empty stage, and masks of the pixels painted on it."""

import numpy as np

from edgeprune.demo.camera import SUPERSAMPLE, CameraView
from edgeprune.demo.solids import MARGIN, Stage


def stage(size: int = 320, px_per_m: float = 10, tilt: float = 0.4) -> Stage:
    """An empty stage in a colour that no object has."""
    canvas = np.full((size * SUPERSAMPLE,) * 2 + (3,), (255, 0, 254), np.uint8)
    return Stage(canvas, CameraView(size, px_per_m, tilt, 0.5), sun_azimuth=0.7, sun_slope=1.0)


def painted(place: Stage) -> np.ndarray:
    return (place.canvas != (255, 0, 254)).any(axis=2)


def inner(place: Stage) -> np.ndarray:
    return place.ids[MARGIN:-MARGIN, MARGIN:-MARGIN]


def bounds(mask: np.ndarray) -> np.ndarray:
    """[x0, y0, x1, y1] of the true pixels, the far edges exclusive."""
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
