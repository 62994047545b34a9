"""Labelled objects: cars, lorries, buses, people and cycles, each a function from a place to a Thing.

Sizes are in metres. All random choices are made when the Thing is created, so that painting it twice gives the same
pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgeprune.demo.camera import Points
from edgeprune.demo.solids import At, Colour, Stage, Thing, disc, local, pick, rect, shade

PAINTS = (
    (225, 226, 228),
    (236, 236, 232),
    (30, 31, 34),
    (46, 48, 52),
    (128, 131, 135),
    (160, 163, 168),
    (92, 96, 102),
    (150, 28, 30),
    (30, 62, 128),
    (44, 88, 150),
    (110, 92, 74),
    (34, 74, 52),
    (188, 160, 60),
    (176, 84, 34),
)
CLOTHES = (
    (200, 40, 44),
    (40, 70, 150),
    (230, 230, 226),
    (24, 25, 28),
    (60, 100, 60),
    (230, 190, 60),
    (120, 60, 120),
    (110, 110, 114),
    (226, 120, 40),
    (70, 150, 170),
    (90, 66, 50),
    (200, 150, 160),
)
SKIN = ((224, 184, 154), (190, 140, 108), (120, 82, 60), (84, 58, 44))
HAIR = ((32, 26, 22), (70, 48, 32), (150, 120, 76), (130, 128, 124), (210, 60, 50), (232, 230, 224))
PERSON_SCALE = 1.2  # people are drawn a fifth larger than life, because otherwise few would cover five pixels


def _lamps(stage: Stage, at: At, length: float, width: float, z: float) -> None:
    if stage.view.px_per_m < 5:
        return
    for sign in (-1, 1):
        y = sign * (width / 2 - 0.28)
        front = [
            (length / 2 - 0.22, y - 0.2),
            (length / 2, y - 0.2),
            (length / 2, y + 0.2),
            (length / 2 - 0.22, y + 0.2),
        ]
        stage.flat(at(front), z, (240, 238, 220))
        stage.flat(at([(x - length + 0.2, q) for x, q in front]), z, (170, 24, 20))


def car(rng: np.random.Generator, centre: Points, heading: float) -> Thing:
    """A saloon, estate, pick-up or van; all have the class car."""
    body = ("saloon", "saloon", "hatch", "estate", "van", "pickup")[rng.integers(6)]
    length = {"saloon": 4.5, "hatch": 3.8, "estate": 4.7, "van": 5.3, "pickup": 5.2}[body] * rng.uniform(0.94, 1.08)
    width = {"van": 2.0}.get(body, 1.82) * rng.uniform(0.96, 1.05)
    colour = pick(rng, PAINTS if body != "van" or rng.random() < 0.4 else PAINTS[:2])
    glass = shade((38, 44, 52), rng.uniform(0.6, 1.5))
    roof = (28, 30, 34) if rng.random() < 0.12 else shade(colour, rng.uniform(0.98, 1.1))
    rack = rng.random() < 0.12
    lid = pick(rng, CLOTHES)

    at = partial(local, centre, heading)

    def paint(stage: Stage) -> None:
        base = at(rect(-length / 2, length / 2, width, 0.28))
        stage.prism(base, 0.0, 0.3, (26, 26, 28))
        stage.prism(base, 0.3, 0.85, colour, roof=shade(colour, 1.04), taper=0.97)
        spans = {
            "saloon": (-0.30, 0.20),
            "hatch": (-0.46, 0.18),
            "estate": (-0.47, 0.20),
            "van": (-0.49, 0.36),
            "pickup": (-0.10, 0.24),
        }
        x0, x1 = (f * length for f in spans[body])
        high = 2.05 if body == "van" else 1.5
        if body == "pickup":
            stage.flat(at(rect(-0.46 * length, -0.13 * length, width * 0.82)), 0.86, (48, 46, 44))
        side = colour if body == "van" else glass
        if body == "van":
            stage.prism(at(rect(x1 - 0.2, x1 + 0.55, width * 0.88)), 0.85, 1.5, glass, taper=0.8)
        stage.prism(
            at(rect(x0, x1, width * 0.9, 0.12)),
            0.85,
            high,
            colour,
            roof=roof,
            side=side,
            taper=0.9 if body == "van" else 0.78,
        )
        if rack:
            stage.flat(at(rect(x0 * 0.6, x1 * 0.6, width * 0.5)), high + 0.1, lid)
        _lamps(stage, at, length, width, 0.8)

    return Thing("car", centre, at(rect(-length / 2, length / 2, width)), 1.3, paint)


def _cargo(rng: np.random.Generator, colour: Colour) -> Callable[[Stage, At, float, float, float], None]:
    """The painter of a lorry's load: a function of (stage, at, x0, x1, width)."""
    kind = ("box", "box", "tarp", "dump", "flat", "tank")[rng.integers(6)]
    load, shape = pick(rng, CLOTHES, 20), rng.uniform(0.3, 0.9, 6)
    white = pick(rng, ((232, 232, 230), (214, 214, 210), colour, (60, 84, 120), (130, 50, 44)))

    def paint(stage: Stage, at: At, x0: float, x1: float, width: float) -> None:
        stage.prism(at(rect(x0, x1, width * 0.96)), 0.4, 1.15, (58, 58, 60))
        if kind in ("box", "tarp"):
            stage.prism(at(rect(x0, x1, width)), 1.0, 3.3, white, roof=shade(white, 1.04))
            ribs = np.linspace(x0, x1, 7)[1:-1] if kind == "tarp" else ()
            for x in ribs:
                stage.flat(at(rect(x - 0.06, x + 0.06, width)), 3.3, shade(white, 0.86))
        elif kind == "dump":
            stage.prism(at(rect(x0, x1, width)), 1.0, 2.1, colour)
            stage.flat(at(rect(x0 + 0.2, x1 - 0.2, width - 0.4)), 2.0, shade((120, 96, 70), shape[0] + 0.4))
        elif kind == "tank":
            for z, grow, tone in ((1.2, 1.0, 0.72), (2.0, 0.9, 0.9), (2.6, 0.55, 1.06)):
                stage.prism(at(rect(x0, x1, width * grow, 0.5 * grow)), z, z + 0.35, shade(white, tone))
        else:
            x = x0
            for part in shape:
                end = min(x1, x + part * 2)
                if end - x > 0.6:
                    stage.prism(
                        at(rect(x, end - 0.15, width * (0.5 + part / 2))), 1.15, 1.3 + part, shade(load, 0.5 + part)
                    )
                x = end

    return paint


def truck(rng: np.random.Generator, centre: Points, heading: float) -> Thing:
    """A lorry: a cab, a gap and a load."""
    length, width = rng.choice([6.2, 7.5, 9.5, 13.0], p=[0.35, 0.3, 0.2, 0.15]) * rng.uniform(0.93, 1.07), 2.4
    if length < 7:
        width = 2.15
    colour = pick(rng, PAINTS)
    cargo = _cargo(rng, colour)
    cab = rng.uniform(1.7, 2.3)

    at = partial(local, centre, heading)

    def paint(stage: Stage) -> None:
        front = length / 2
        rear = -front, front - cab - 0.3
        draw_cab_last = np.sin(heading) > 0  # the end that is nearer to the viewer is drawn last
        if draw_cab_last:
            cargo(stage, at, *rear, width)
        stage.prism(at(rect(rear[1] - 0.2, front - cab + 0.2, width * 0.5)), 0.4, 0.9, (40, 40, 42))
        stage.prism(at(rect(front - cab, front, width * 0.95, 0.18)), 0.2, 1.4, colour)
        stage.prism(
            at(rect(front - cab, front - 0.05, width * 0.92, 0.18)), 1.4, 2.5, colour, side=(40, 46, 54), taper=0.88
        )
        _lamps(stage, at, length, width, 0.9)
        if not draw_cab_last:
            cargo(stage, at, *rear, width)

    return Thing("truck", centre, at(rect(-length / 2, length / 2, width)), 2.9, paint)


def bus(rng: np.random.Generator, centre: Points, heading: float) -> Thing:
    """A city bus or coach: long, windows all round, hatches and air conditioning on the roof."""
    length, width = rng.uniform(8.5, 13.0), 2.5
    colour = pick(rng, ((230, 230, 226), (214, 170, 40), (170, 34, 36), (40, 80, 150), (60, 120, 80), (226, 120, 40)))
    roof = shade(colour, 1.03) if rng.random() < 0.5 else pick(rng, ((225, 225, 222), (190, 192, 194)))
    hatches = rng.uniform(-0.4, 0.4, int(rng.integers(1, 4)))
    units = rng.uniform(-0.35, 0.3, int(rng.integers(0, 3)))

    at = partial(local, centre, heading)

    def paint(stage: Stage) -> None:
        base = at(rect(-length / 2, length / 2, width, 0.2))
        stage.prism(base, 0.2, 1.3, colour)
        stage.prism(base, 1.3, 2.5, (40, 46, 54))
        stage.prism(base, 2.5, 3.05, colour, roof=roof, taper=0.96)
        for f in hatches:
            stage.flat(at(rect(f * length - 0.4, f * length + 0.4, 0.9)), 3.06, shade(roof, 0.8))
        for f in units:
            stage.prism(at(rect(f * length - 0.9, f * length + 0.9, 1.7)), 3.05, 3.3, (196, 198, 198))

    return Thing("bus", centre, at(rect(-length / 2, length / 2, width)), 3.0, paint)


@dataclass(frozen=True)
class _Body:
    """The upper body of a person.

    Attributes:
        top: colour of the clothes.
        skin: colour of the skin.
        hair: colour of the hair.
        scale: size relative to a real person.
        swing: swing of the arms, in [-1, 1].
    """

    top: Colour
    skin: Colour
    hair: Colour
    scale: float
    swing: float


def _torso(stage: Stage, at: At, body: _Body, lean: float, z: float) -> None:
    """Draw the upper body of a person.

    Args:
        stage: the stage.
        at: transforms points of the person into the world.
        body: the body.
        lean: forward shift of the body, metres at scale 1.
        z: height of the hips, metres.
    """
    s, swing = body.scale, body.swing
    for sign in (-1, 1):
        arm = [
            (lean + sign * swing * 0.28 - 0.09, sign * 0.25 - 0.06),
            (lean + sign * swing * 0.28 + 0.09, sign * 0.25 - 0.06),
            (lean + 0.06, sign * 0.25 + 0.07),
            (lean - 0.06, sign * 0.25 + 0.07),
        ]
        stage.prism(at(np.array(arm) * s), z, z + 0.45 * s, shade(body.top, 0.9), side=shade(body.skin, 0.8))
    stage.prism(at(disc(0.16, 0.26) * s + (lean * s, 0)), z - 0.05, z + 0.62 * s, body.top, taper=0.92)
    stage.prism(
        at(disc(0.115, 0.1) * s + ((lean + 0.04) * s, 0)),
        z + 0.6 * s,
        z + 0.85 * s,
        body.hair,
        side=body.skin,
        taper=0.8,
    )


def person(rng: np.random.Generator, centre: Points, heading: float, lying: float = 0.0) -> Thing:
    """A walking, standing or, with probability `lying`, lying person."""
    s = PERSON_SCALE * rng.uniform(0.85, 1.12)
    top, legs = (
        pick(rng, CLOTHES),
        pick(rng, ((38, 44, 66), (30, 30, 32), (120, 104, 84), (90, 92, 96), (200, 196, 186))),
    )
    skin, hair = pick(rng, SKIN, 6), pick(rng, HAIR, 8)
    swing, flat = rng.uniform(-1, 1), rng.random() < lying
    bag = pick(rng, CLOTHES) if rng.random() < 0.2 else None
    body = _Body(top, skin, hair, s, swing)

    at = partial(local, centre, heading)

    def standing(stage: Stage) -> None:
        for sign in (-1, 1):
            x = sign * swing * 0.22
            stage.prism(at(np.array(rect(x - 0.12, x + 0.12, 0.17)) * s + (0, sign * 0.11 * s)), 0, 0.85 * s, legs)
        _torso(stage, at, body, 0.0, 0.8 * s)
        if bag:
            stage.prism(at(np.array(rect(-0.34, -0.14, 0.3)) * s), 0.95 * s, 1.35 * s, bag)

    def prone(stage: Stage) -> None:
        for sign in (-1, 1):
            stage.prism(
                at(np.array(rect(-0.95, -0.15, 0.15)) * s + (0, sign * (0.1 + 0.05 * swing) * s)), 0, 0.14, skin
            )
            stage.prism(at(np.array(rect(-0.05, 0.5, 0.1)) * s + (0, sign * 0.3 * s)), 0, 0.12, skin)
        stage.prism(at(np.array(rect(-0.3, 0.45, 0.42, 0.1)) * s), 0, 0.22, top if swing > 0 else skin)
        stage.prism(at(np.array(rect(-0.3, 0.0, 0.4, 0.1)) * s), 0, 0.24, top)
        stage.prism(at(disc(0.13, 0.12) * s + (0.62 * s, 0)), 0.05, 0.25, hair)

    base = at(disc(0.75, 0.3) * s) if flat else at(disc(0.2, 0.24) * s)
    return Thing("person", centre, base, 0.2 if flat else 1.7 * s, prone if flat else standing)


def cycle(rng: np.random.Generator, centre: Points, heading: float) -> Thing:
    """A bicycle, scooter or motorcycle, mostly with its rider. The box bounds both; the rider has no box."""
    s, motor = PERSON_SCALE, rng.random() < 0.4
    frame, top = pick(rng, PAINTS), pick(rng, CLOTHES)
    skin, hair = pick(rng, SKIN, 6), pick(rng, HAIR, 8)
    ridden, turn = rng.random() < 0.72, rng.normal(0, 0.2)
    rider = _Body(top, skin, hair, s, swing=0.9)

    at = partial(local, centre, heading)

    def paint(stage: Stage) -> None:
        tyre, thick = (24, 24, 26), 0.2 if motor else 0.1
        for x in (-0.58, 0.58):
            stage.prism(at(np.array(rect(x - 0.34, x + 0.34, thick)) * s), 0, 0.66 * s, tyre)
        if motor:
            stage.prism(at(np.array(rect(-0.55, 0.5, 0.38, 0.12)) * s), 0.35, 0.9 * s, frame)
            stage.flat(at(np.array(rect(-0.6, 0.0, 0.3, 0.05)) * s), 0.92 * s, (30, 28, 28))
        else:
            stage.prism(at(np.array(rect(-0.5, 0.5, 0.09)) * s), 0.5 * s, 0.75 * s, frame)
            stage.prism(at(np.array(rect(-0.35, -0.08, 0.18)) * s), 0.85 * s, 0.95 * s, (30, 28, 28))
        bar = rect(0.36 + turn * 0.2, 0.46 + turn * 0.2, 0.62)
        stage.flat(at(np.array(bar) * s), 1.0 * s, (70, 70, 72))
        if ridden:
            for sign in (-1, 1):
                stage.prism(
                    at(np.array(rect(-0.22, 0.2, 0.14)) * s + (0, sign * 0.15 * s)),
                    0.35 * s,
                    0.95 * s,
                    shade(top, 0.55),
                )
            _torso(stage, at, rider, 0.05, 0.9 * s)

    return Thing("cycle", centre, at(rect(-0.95 * s, 0.95 * s, 0.5)), 1.7 * s if ridden else 0.9, paint)


#: The maker of each class: (random numbers, centre, heading) -> Thing; that of a person also takes `lying`.
MAKERS: dict[str, Callable[..., Thing]] = {"person": person, "cycle": cycle, "car": car, "truck": truck, "bus": bus}
