"""The ground: textures from multi-octave noise, roads with their markings, water, furrows, painted lots.

Everything is painted flat; objects.py has the things that stand on the ground.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from edgeprune.demo.camera import SUPERSAMPLE, CameraView, Points, Raster
from edgeprune.demo.solids import Colour

# The two RGB colours of each texture, which the noise mixes.
GROUNDS = {
    "grass": ((62, 88, 40), (122, 138, 70)),
    "dry_grass": ((128, 122, 72), (172, 158, 104)),
    "soil": ((96, 72, 52), (150, 120, 90)),
    "sand": ((186, 168, 128), (222, 206, 168)),
    "asphalt": ((70, 71, 74), (112, 112, 114)),
    "concrete": ((140, 138, 132), (180, 178, 172)),
    "gravel": ((118, 112, 104), (168, 160, 150)),
    "crop": ((70, 104, 38), (138, 152, 62)),
}


def noise(rng: np.random.Generator, size: int, cells: float, octaves: int = 4) -> Raster:
    """Value noise.

    Args:
        rng: The random number generator.
        size: The side, px.
        cells: Cells per side of the coarsest octave.
        octaves: The number of octaves.

    Returns:
        (size, size) float32 in 0..1.
    """
    out = np.zeros((size, size), np.float32)
    weight, total = 1.0, 0.0
    for _ in range(octaves):
        side = int(np.clip(cells, 2, size)) + 1
        grid = rng.random((side, side), dtype=np.float32)
        out += cv2.resize(grid * np.float32(weight), (size, size), interpolation=cv2.INTER_CUBIC)
        total, weight, cells = total + weight, weight * 0.55, cells * 2.3
    levels: Raster = np.clip(out * np.float32(1.7 / total) - np.float32(0.35), 0, 1)
    return levels


def texture(rng: np.random.Generator, size: int, kind: str, px_per_m: float) -> Raster:
    """The texture of one kind of ground.

    Args:
        rng: The random number generator.
        size: The side, px.
        kind: A name in GROUNDS.
        px_per_m: The scale.

    Returns:
        (size, size, 3) float32 RGB.
    """
    low, high = (np.array(c, np.float32) * rng.uniform(0.88, 1.1) + rng.uniform(-8, 8, 3) for c in GROUNDS[kind])
    mix = noise(rng, size, size / (px_per_m * rng.uniform(4, 14)), 5)
    grain = rng.random((size, size), dtype=np.float32) - 0.5
    rough = {"asphalt": 0.12, "concrete": 0.08, "sand": 0.12}.get(kind, 0.3)
    mix += grain * np.float32(rough)
    planes = [mix * float(h - b) + np.float32(b) for b, h in zip(low, high, strict=True)]
    ground: npt.NDArray[np.float32] = cv2.merge(planes)
    return ground


def furrows(rng: np.random.Generator, view: CameraView, ground: Raster) -> Raster:
    """Add plough lines and rows of a crop, in perspective.

    Args:
        rng: The random number generator.
        view: The camera.
        ground: (size, size, 3) float32 RGB.
    """
    x, y = view.ground_map()
    angle, pitch = rng.uniform(0, np.pi), max(rng.uniform(0.7, 2.5), 3.0 / view.px_per_m)
    wobble = noise(rng, view.size, 3, 2) * pitch * rng.uniform(0, 1.5)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle) + wobble) * (2 * np.pi / pitch))
    shades: Raster = (1 + wave * rng.uniform(0.06, 0.2)).astype(np.float32)[..., None]
    return ground * shades


def water(rng: np.random.Generator, view: CameraView, ground: Raster) -> tuple[Raster, Raster]:
    """Add a shore along one side, with water, foam and a wet rim.

    Args:
        rng: The random number generator.
        view: The camera.
        ground: (size, size, 3) float32 RGB.

    Returns:
        (the ground, the mask (size, size) bool of the water).
    """
    size = view.size
    angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(-0.15, 0.35)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    depth = np.cos(angle) * axis[None] + np.sin(angle) * axis[:, None] - shift + (noise(rng, size, 3, 4) - 0.5) * 0.35
    deep = np.array(((28, 66, 84), (40, 84, 70), (52, 70, 60))[rng.integers(3)], np.float32)
    waves = (noise(rng, size, size / 10, 3) - 0.5)[..., None] * 26
    colour = deep + np.array([44, 62, 52], np.float32) * np.exp(-np.maximum(depth, 0) * 5)[..., None] + waves
    wet = np.clip(1 + np.minimum(depth, 0) * 7, 0, 1)[..., None] * 0.3
    foam = (np.abs(depth - 0.02 + waves[..., 0] * 0.001) < rng.uniform(0.004, 0.014)).astype(np.float32)[
        ..., None
    ] * 0.7
    mask = np.clip(depth * 40, 0, 1)[..., None]
    ground = ground * (1 - wet) * (1 - mask) + colour * mask
    return ground * (1 - foam) + 225 * foam, depth > 0


def base(rng: np.random.Generator, view: CameraView, kinds: tuple[str, ...], furrowed: bool) -> Raster:
    """One or two grounds that meet along an irregular or a straight edge.

    Args:
        rng: The random number generator.
        view: The camera.
        kinds: The textures to choose from, names in GROUNDS.
        furrowed: Whether the first ground has furrows.

    Returns:
        (size, size, 3) float32 RGB.
    """
    ground = texture(rng, view.size, str(rng.choice(kinds)), view.px_per_m)
    if furrowed:
        ground = furrows(rng, view, ground)
    if rng.random() < 0.6:
        other = texture(rng, view.size, str(rng.choice(kinds)), view.px_per_m)
        mask = np.clip((noise(rng, view.size, rng.uniform(1.5, 5), 4) - rng.uniform(0.45, 0.65)) * 12, 0, 1)[..., None]
        ground = ground * (1 - mask) + other * mask
    return ground


def to_canvas(ground: Raster) -> Raster:
    """(s, s, 3) float -> (2s, 2s, 3) uint8."""
    side = len(ground) * SUPERSAMPLE
    return cv2.resize(np.clip(ground, 0, 255).astype(np.uint8), (side, side), interpolation=cv2.INTER_LINEAR)


def flat(view: CameraView, polygon: Points) -> npt.NDArray[np.int32]:
    """(n, 2) metres on the ground -> (n, 2) int32 with three fractional bits, as OpenCV's fill functions expect."""
    points = np.concatenate([polygon, np.zeros((len(polygon), 1))], axis=1)
    return np.round(view.project(points) * 8).astype(np.int32)


def paint(canvas: Raster, view: CameraView, polygons: list[Points], colour: Colour, alpha: float = 1.0) -> None:
    """Fill ground polygons with a colour.

    Args:
        canvas: (2 size, 2 size, 3) uint8; it is changed.
        view: The camera.
        polygons: Each (n, 2) metres.
        colour: RGB.
        alpha: Below 1 the ground shows through, as with worn paint.
    """
    shapes = [flat(view, p) for p in polygons]
    if not shapes:
        return
    if alpha >= 1:
        cv2.fillPoly(canvas, shapes, colour, cv2.LINE_AA, 3)
        return
    over = canvas.copy()
    cv2.fillPoly(over, shapes, colour, cv2.LINE_AA, 3)
    cv2.addWeighted(over, alpha, canvas, 1 - alpha, 0, dst=canvas)


def surface(canvas: Raster, view: CameraView, polygons: list[Points], ground: Raster) -> None:
    """Fill ground polygons with a texture.

    Args:
        canvas: (2 size, 2 size, 3) uint8; it is changed.
        view: The camera.
        polygons: Each (n, 2) metres.
        ground: The texture, with the shape of the canvas.
    """
    mask = np.zeros(canvas.shape[:2], np.uint8)
    cv2.fillPoly(mask, [flat(view, p) for p in polygons], 255, cv2.LINE_8, 3)
    cv2.copyTo(ground, mask, canvas)


class Road:
    """A centre line (n, 2) in metres and a width; `at(s)` gives a point and heading for vehicles."""

    def __init__(self, rng: np.random.Generator, view: CameraView, width_m: float, through: Points) -> None:
        reach = 2.2 * view.size / view.px_per_m
        angle, bend = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.7)
        s = np.linspace(-reach, reach, 49)
        turn = angle + bend * np.tanh(s / reach * 2)
        step = np.stack([np.cos(turn), np.sin(turn)], 1) * (s[1] - s[0])
        line = np.cumsum(step, axis=0)
        self.line = line - line[24] + through
        self.heading, self.s, self.width_m = turn, s, width_m
        self.normal = np.stack([-np.sin(turn), np.cos(turn)], 1)

    def strip(self, left: float, right: float) -> Points:
        """The polygon between two lateral offsets, metres."""
        return np.concatenate([self.line + self.normal * left, (self.line + self.normal * right)[::-1]])

    def at(self, s: float, offset: float) -> tuple[Points, float]:
        """Point (2,) at arc length s and a lateral offset, and the heading there in radians."""
        point = np.array([np.interp(s, self.s, self.line[:, k]) for k in (0, 1)])
        heading = float(np.interp(s, self.s, self.heading))
        return point + offset * np.array([-np.sin(heading), np.cos(heading)]), heading

    def dashes(self, offset: float, length: float, gap: float, width: float) -> list[Points]:
        """The quads of a broken line.

        Args:
            offset: The distance from the centre line, metres.
            length: The length of a dash, metres.
            gap: The gap between dashes, metres.
            width: The width of the line, metres.
        """
        starts = np.arange(self.s[0], self.s[-1] - length, length + gap)
        ends = [np.stack([np.interp(q, self.s, self.line[:, k]) for k in (0, 1)], 1) for q in (starts, starts + length)]
        normal = [
            np.stack([np.interp(q, self.s, self.normal[:, k]) for k in (0, 1)], 1) for q in (starts, starts + length)
        ]
        low, high = (
            (p + n * (offset - width / 2), p + n * (offset + width / 2)) for p, n in zip(ends, normal, strict=True)
        )
        return list(np.stack([low[0], low[1], high[1], high[0]], axis=1))

    def draw(self, rng: np.random.Generator, canvas: Raster, view: CameraView, ground: Raster, paved: bool) -> None:
        """Draw the surface, kerbs and markings.

        Args:
            rng: The random number generator.
            canvas: (2 size, 2 size, 3) uint8; it is changed.
            view: The camera.
            ground: The texture of the surface, with the shape of the canvas.
            paved: Whether it has kerbs and markings.
        """
        half = self.width_m / 2
        if paved and rng.random() < 0.5:
            side = rng.uniform(0.8, 2.2)
            shade = rng.uniform(125, 180)
            paint(canvas, view, [self.strip(-half - side, half + side)], (shade, shade - 2, shade - 8))
        surface(canvas, view, [self.strip(-half, half)], ground)
        if not paved:
            return
        white = (215, 213, 205) if rng.random() < 0.8 else (214, 176, 60)
        line = max(0.16, 0.9 / view.px_per_m / SUPERSAMPLE * 2)
        worn = rng.uniform(0.45, 1.0)
        if rng.random() < 0.75:
            paint(canvas, view, self.dashes(0.0, 3.0, rng.uniform(2, 5), line), white, worn)
        if rng.random() < 0.6:
            edges = [self.strip(side - line / 2, side + line / 2) for side in (-half + 0.35, half - 0.35)]
            paint(canvas, view, edges, (205, 203, 196), worn)
        if rng.random() < 0.4:  # a zebra crossing
            where, bars = rng.uniform(-0.15, 0.15) * self.s[-1], []
            for offset in np.arange(-half + 0.5, half - 0.4, 1.1):
                centre, heading = self.at(where, offset)
                along = np.array([np.cos(heading), np.sin(heading)]) * 1.6
                across = np.array([-np.sin(heading), np.cos(heading)]) * 0.28
                bars.append(
                    np.stack(
                        [
                            centre - along - across,
                            centre + along - across,
                            centre + along + across,
                            centre - along + across,
                        ]
                    )
                )
            paint(canvas, view, bars, (214, 213, 208), worn)
