"""Things without a label that hide or resemble labelled objects: trees, buildings and clutter."""

from __future__ import annotations

from functools import partial

import cv2
import numpy as np

from edgeprune.demo.camera import SUPERSAMPLE, Points
from edgeprune.demo.objects import CLOTHES, PAINTS
from edgeprune.demo.solids import MARGIN, Stage, Thing, disc, local, pick, rect, shade


def tree(rng: np.random.Generator, centre: Points, radius: float, height: float) -> Thing:
    """A crown of leaf clumps, darker below and on the side away from the sun; a small one is a bush.

    Args:
        rng: The random number generator.
        centre: (2,) metres.
        radius: Metres.
        height: Metres.
    """
    green = np.array(((52, 78, 34), (70, 92, 40), (44, 66, 40), (96, 104, 48), (120, 96, 44))[rng.integers(5)], float)
    count = int(np.clip(radius * 5, 7, 20))
    a, r = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.random(count)) * 0.72 * radius
    clumps = np.column_stack([np.cos(a) * r, np.sin(a) * r, height * (1 - 0.45 * (r / radius) ** 2)])
    clumps = clumps[np.argsort(clumps[:, 2])]
    size, tone = rng.uniform(0.28, 0.55, count) * radius, rng.normal(0, 7, count)

    def paint(stage: Stage) -> None:
        points = clumps + np.array([*centre, 0])
        scale = stage.view.px_per_m * SUPERSAMPLE
        lit = clumps[:, :2] @ np.array(stage.sun) / radius
        uv = stage.view.project(np.concatenate([points - (0, 0, 0.3 * radius), points]))
        for layer, dim in ((0, 0.72), (count, 1.0)):
            for i in range(count):
                value = tuple(np.clip(green * (dim * (0.85 + 0.3 * lit[i] + 0.25 * i / count)) + tone[i], 5, 240))
                grow = size[i] * (1.12 if not layer else 0.85)
                at = uv[layer + i].round().astype(int)
                radius_px = max(1, round(grow * scale))
                cv2.circle(stage.canvas, tuple(at.tolist()), radius_px, value, -1, cv2.LINE_AA)
                cv2.circle(stage.ids, tuple((at + MARGIN).tolist()), radius_px, 0, -1)

    return Thing(None, centre, local(centre, 0.0, disc(radius * 0.8, radius * 0.8, 10)), height, paint, over=radius)


def building(rng: np.random.Generator, centre: Points, heading: float, length: float, width: float) -> Thing:
    """A block with a flat roof (vents, skylights, panels) or a gable roof (two slopes of tiles).

    Args:
        rng: The random number generator.
        centre: (2,) metres.
        heading: Radians.
        length: Metres.
        width: Metres.
    """
    height = rng.uniform(3.0, 9.0)
    wall = pick(rng, ((190, 180, 164), (206, 202, 194), (150, 96, 76), (132, 130, 128), (214, 196, 150)))
    cover = pick(
        rng, ((150, 80, 60), (122, 62, 50), (96, 92, 90), (132, 128, 122), (176, 174, 170), (70, 76, 84), (92, 112, 96))
    )
    gable, ridge = rng.random() < 0.5, rng.uniform(1.0, 2.4)
    extras = rng.random((int(rng.integers(1, 7)), 4))

    at = partial(local, centre, heading)

    def slope(stage: Stage, sign: int) -> None:
        eave = at([(-length / 2 - 0.4, sign * (width / 2 + 0.4)), (length / 2 + 0.4, sign * (width / 2 + 0.4))])
        top = at([(length / 2 + 0.4, 0), (-length / 2 - 0.4, 0)])
        points = np.column_stack([np.concatenate([eave, top]), [height, height, height + ridge, height + ridge]])
        lit = 0.9 + 0.2 * float(np.array([-np.sin(heading), np.cos(heading)]) @ np.array(stage.sun)) * sign
        uv = stage.view.project(points)
        stage.fill(uv, shade(cover, lit))
        for f in np.arange(0.12, 1, 0.16):  # courses of tiles
            row = np.stack([uv[0] * (1 - f) + uv[3] * f, uv[1] * (1 - f) + uv[2] * f])
            begin, end = row.round().astype(int).tolist()
            cv2.line(stage.canvas, begin, end, shade(cover, lit * 0.88), 1, cv2.LINE_AA)

    def paint(stage: Stage) -> None:
        stage.prism(at(rect(-length / 2, length / 2, width)), 0, height, wall, roof=cover)
        if gable:
            near = 1 if np.cos(heading) > 0 else -1
            slope(stage, -near)
            slope(stage, near)
            return
        stage.flat(at(rect(-length / 2 + 0.3, length / 2 - 0.3, width - 0.6)), height, shade(cover, 0.9))
        for x, y, w, k in extras:
            where = np.array([(x - 0.5) * (length - 3), (y - 0.5) * (width - 3)])
            spot = rect(-0.4 - w, 0.4 + w, 0.8 + 1.4 * k) + where
            if k < 0.35:
                stage.flat(at(spot), height + 0.02, (44, 56, 86))
            else:
                stage.prism(at(spot), height, height + 0.3 + w, (140 + 80 * w,) * 3)

    return Thing(None, centre, at(rect(-length / 2, length / 2, width)), height + (ridge / 2 if gable else 0), paint)


def clutter(rng: np.random.Generator, centre: Points, heading: float, kind: str) -> Thing:
    """A thing that resembles a labelled object.

    Args:
        rng: The random number generator.
        centre: (2,) metres.
        heading: Radians.
        kind: One of CLUTTER.
    """
    colour, low = pick(rng, CLOTHES + PAINTS, 16), rng.uniform(0.75, 1.0)
    bits = rng.uniform(0.6, 1.2, 9)
    dims = {
        "container": (rng.choice([6.1, 12.2]), 2.4, 2.6),
        "crate": (1.2 * bits[0], 1.0 * bits[1], 1.0 * bits[2]),
        "bin": (0.55, 0.5, 1.1),
        "skip": (3.6, 1.8, 1.3),
        "shed": (4.4 * bits[0], 2.4, 2.2),
        "bale": (1.5, 1.3, 1.2),
        "bench": (0.5, 1.8, 0.5),
    }

    at = partial(local, centre, heading)

    if kind in dims:
        length, width, height = dims[kind]
        base = at(rect(-length / 2, length / 2, width, 0.3 if kind == "bale" else 0))
        tone = (178, 154, 92) if kind == "bale" else shade(colour, low)

        def paint(stage: Stage) -> None:
            stage.prism(base, 0, height, tone)
            if kind == "skip":
                stage.flat(
                    at(rect(-length / 2 + 0.2, length / 2 - 0.2, width - 0.4)), height, shade((96, 84, 70), bits[3])
                )
            elif kind == "container" and stage.view.px_per_m > 4:
                for x in np.arange(-length / 2 + 0.5, length / 2, 1.0):
                    stage.flat(at(rect(x, x + 0.12, width)), height, shade(tone, 0.84))

    elif kind == "rock":
        base = at(disc(0.7 * bits[0], 0.6 * bits[1], 7) * bits[2:9, None])
        base = cv2.convexHull(base.astype(np.float32))[:, 0].astype(float)
        height, grey = 0.5 * bits[0], rng.uniform(95, 165)
        follow = np.roll(base, -1, axis=0)
        if (base[:, 0] * follow[:, 1] - base[:, 1] * follow[:, 0]).sum() < 0:
            base = base[::-1]  # prism takes its corners in the order of rect and disc

        def paint(stage: Stage) -> None:
            stage.prism(base, 0, height, (grey, grey * 0.97, grey * 0.92), taper=0.6)

    elif kind == "parasol":
        radius, height = rng.uniform(0.9, 1.6), 2.1
        base = at(disc(radius, radius, 10))

        def paint(stage: Stage) -> None:
            stage.prism(at(disc(0.05, 0.05, 4)), 0, height, (90, 80, 70))
            stage.prism(base, height - 0.3, height, colour, taper=0.15, side=shade(colour, 1.3))

    else:  # pole
        height = rng.uniform(2.5, 7)
        base = at(disc(0.1, 0.1, 6))

        def paint(stage: Stage) -> None:
            stage.prism(base, 0, height, (120, 120, 122))
            stage.prism(at(rect(0, 0.9, 0.22)), height - 0.1, height, (150, 150, 150))

    return Thing(None, centre, base, height, paint)


CLUTTER = ("container", "crate", "bin", "skip", "shed", "bale", "bench", "rock", "parasol", "pole")
