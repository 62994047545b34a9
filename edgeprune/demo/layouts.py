"""The layouts of a scene (a town, a car park, a beach, …), each a function that fills a SitePlan.

To add a layout, add one function and its row in LAYOUTS. The module does not depend on masks and boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgeprune.demo import terrain
from edgeprune.demo.camera import SUPERSAMPLE, CameraView, Points, Raster
from edgeprune.demo.objects import MAKERS
from edgeprune.demo.solids import Thing
from edgeprune.demo.surroundings import CLUTTER, building, clutter, tree
from edgeprune.demo.terrain import Road

_RADIUS_M = {"person": 0.5, "cycle": 0.8, "car": 1.5, "truck": 1.9, "bus": 2.0}
_LENGTH_M = {"person": 0.4, "cycle": 1.2, "car": 3.2, "truck": 9.0, "bus": 11.0}
#: Returns whether a thing with this radius, metres, must not be placed at a point.
KeepOff = Callable[[Points, float], bool]


class SitePlan:
    """The places of things in a scene. Circles, (x, y, radius) in metres, keep footprints apart."""

    def __init__(self, rng: np.random.Generator, view: CameraView) -> None:
        self.rng, self.view = rng, view
        self.things: list[Thing] = []
        self._circles: Points = np.empty((0, 3))

    def spot(self, border: float = 0.06) -> Points:
        """A point on the ground, (2,) metres, in the image or just outside it."""
        u, v = self.rng.uniform(-border, 1 + border, 2) * self.view.size
        return np.array(self.view.ground(u, v))

    def seen(self, where: Points, margin_m: float) -> bool:
        """Whether a ground point is in the image or within a margin of it."""
        u, v = self.view.project(np.array([[*where, 0.0]]))[0] / SUPERSAMPLE
        low, high = -margin_m * self.view.px_per_m, self.view.size + margin_m * self.view.px_per_m
        return bool(low < u < high and low < v < high)

    def free(self, centre: Points, heading: float, length: float, radius: float, claim: bool = True) -> bool:
        """Whether a capsule fits between the placed things.

        Args:
            centre: (2,) metres.
            heading: Radians.
            length: The length of the capsule, metres.
            radius: The radius of the capsule, metres.
            claim: Whether to occupy the place if it fits.
        """
        offsets = (
            np.linspace(-length / 2, length / 2, max(1, int(np.ceil(length / radius)))) if length > radius else [0.0]
        )
        points = np.array([(centre[0] + np.cos(heading) * o, centre[1] + np.sin(heading) * o, radius) for o in offsets])
        if len(self._circles):
            gap = np.hypot(*(points[:, None, :2] - self._circles[None, :, :2]).transpose(2, 0, 1))
            if (gap < points[:, None, 2] + self._circles[None, :, 2]).any():
                return False
        if claim:
            self._circles = np.concatenate([self._circles, points])
        return True

    def put(self, kind: str, centre: Points, heading: float, tight: float = 1.0, **more: float) -> bool:
        """Add a labelled object if there is room.

        Args:
            kind: Its class.
            centre: (2,) metres.
            heading: Radians.
            tight: A factor for the room that it needs.
            **more: Arguments of its maker.

        Returns:
            Whether there was room.
        """
        if not self.free(centre, heading, _LENGTH_M[kind], _RADIUS_M[kind] * tight):
            return False
        if self.seen(centre, 9.0):
            self.things.append(MAKERS[kind](self.rng, centre, heading, **more))
        return True

    def scatter(self, kind: str, count: int, blocked: KeepOff | None = None, **more: float) -> None:
        """Add objects at random points and angles.

        Args:
            kind: Their class.
            count: Their number.
            blocked: Returns whether a point is excluded; None excludes no point.
            **more: Arguments of their maker.
        """
        for _ in range(count):
            where = self.spot()
            if blocked is None or not blocked(where, 0.0):
                self.put(kind, where, self.rng.uniform(0, 2 * np.pi), **more)

    def crowd(self, groups: int, mean: float) -> None:
        """Add people in groups."""
        for _ in range(groups):
            centre, spread = self.spot(0.0), self.rng.uniform(0.6, 2.5)
            for _ in range(1 + self.rng.poisson(mean)):
                where = centre + self.rng.normal(0, spread, 2)
                self.put("person", where, self.rng.uniform(0, 2 * np.pi), tight=0.7)

    def green(self, count: int, keep_off: KeepOff | None = None) -> None:
        """Add trees and bushes."""
        for _ in range(count):
            bush = self.rng.random() < 0.35
            radius = self.rng.uniform(0.4, 1.0) if bush else self.rng.uniform(1.3, 3.6)
            where = self.spot(0.12)
            if (keep_off is None or not keep_off(where, radius)) and self.free(where, 0, 0, radius * 0.55):
                self.things.append(
                    tree(self.rng, where, radius, radius * (1.0 if bush else self.rng.uniform(1.3, 2.1)))
                )

    def litter(self, count: int, kinds: Sequence[str] = CLUTTER) -> None:
        """Add things that resemble labelled objects."""
        for _ in range(count):
            kind, where, heading = str(self.rng.choice(kinds)), self.spot(), self.rng.uniform(0, 2 * np.pi)
            length = {"container": 9.0, "shed": 3.0, "skip": 2.5}.get(kind, 0.0)
            if self.free(where, heading, length, {"container": 1.6, "shed": 1.8, "skip": 1.3}.get(kind, 0.8)):
                self.things.append(clutter(self.rng, where, heading, kind))

    def houses(self, count: int, keep_off: KeepOff) -> None:
        """Add buildings of 6 to 22 m beside the roads."""
        for _ in range(count):
            length, width = self.rng.uniform(7, 22), self.rng.uniform(6, 12)
            where, heading = self.spot(0.15), self.rng.uniform(0, np.pi)
            if not keep_off(where, width * 0.75 + length * 0.2) and self.free(where, heading, length, width * 0.62):
                self.things.append(building(self.rng, where, heading, length, width))


def _people_scale(view: CameraView) -> float:
    """The share of people to draw: none if a person would cover less than four pixels."""
    return float(np.clip((view.px_per_m - 4.5) / 3, 0, 1))


def _near(roads: list[Road], where: Points, margin: float) -> bool:
    """Whether a point lies on a road or within `margin` metres of one."""
    return any(np.hypot(*(r.line - where).T).min() < r.width_m / 2 + margin for r in roads)


def _roads(plan: SitePlan, canvas: Raster, count: int, paved: bool) -> list[Road]:
    rng, view = plan.rng, plan.view
    through = plan.spot(-0.25)
    width = rng.choice([6.5, 7.5, 13.5], p=[0.4, 0.4, 0.2]) if paved else rng.uniform(3, 5)
    kind = "asphalt" if paved else str(rng.choice(["soil", "gravel"]))
    ground = terrain.to_canvas(terrain.texture(rng, view.size, kind, view.px_per_m))
    roads = [Road(rng, view, float(width), through + rng.normal(0, 3, 2)) for _ in range(count)]
    for road in roads:
        road.draw(rng, canvas, view, ground, paved)
    return roads


def _traffic(
    plan: SitePlan, roads: list[Road], density: float, classes: Sequence[str], weights: Sequence[float]
) -> None:
    """Vehicles in their lanes, and some parked at the kerb."""
    rng = plan.rng
    for road in roads:
        lanes = max(1, round(road.width_m / 3.4) // 2)
        reach = 0.75 * plan.view.size / plan.view.px_per_m
        for side in (-1, 1):
            for lane in range(lanes):
                s = -reach + rng.exponential(8)
                while s < reach:
                    kind = str(rng.choice(classes, p=weights))
                    offset = side * road.width_m / 2 * (lane + 0.5) / lanes + rng.normal(0, 0.2)
                    if kind in ("person", "cycle"):
                        offset = side * (road.width_m / 2 - 0.6)
                    where, heading = road.at(s, offset)
                    plan.put(kind, where, heading + (np.pi if side < 0 else 0) + rng.normal(0, 0.05), tight=0.9)
                    s += _LENGTH_M[kind] + 2 + rng.exponential(14 / density)
        if rng.random() < 0.5:  # along the kerb
            side = rng.choice([-1, 1]) * (road.width_m / 2 + 1.3)
            for s in np.arange(-reach, reach, 6.0):
                if rng.random() < 0.4:
                    where, heading = road.at(s, side)
                    plan.put("car", where, heading + (0 if rng.random() < 0.8 else np.pi), tight=0.85)


def _lot(plan: SitePlan, canvas: Raster) -> None:
    """Rows of painted bays, some of them occupied; the wide bays are for buses and lorries."""
    rng, view = plan.rng, plan.view
    angle, centre = rng.uniform(0, np.pi), plan.spot(-0.3)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    taken, lines, slots = rng.uniform(0.15, 0.75), [], []
    heavy = rng.random() < 0.4
    reach, row = 0.75 * view.size / view.px_per_m, 0.0
    for row in np.arange(-reach, reach, 16.0):
        wide = heavy and rng.random() < 0.5
        bay, depth = (3.6, 11.5) if wide else (2.6, 5.0)
        for flip in (-1,) if wide else (-1, 1):
            for s in np.arange(-reach, reach, bay):
                if not plan.seen(centre + along * s + across * row, 12.0):
                    continue
                edge = centre + along * (s - bay / 2) + across * row
                lines.append(
                    np.stack(
                        [
                            edge - along * 0.06,
                            edge + along * 0.06,
                            edge + along * 0.06 + across * flip * depth,
                            edge - along * 0.06 + across * flip * depth,
                        ]
                    )
                )
                slots.append((centre + along * s + across * (row + flip * depth / 2), wide))
    if rng.random() < 0.85:
        terrain.paint(
            canvas, view, lines, (214, 213, 206) if rng.random() < 0.8 else (206, 172, 64), rng.uniform(0.4, 0.95)
        )
    for where, wide in slots:
        if rng.random() < taken:
            kind = str(rng.choice(["truck", "bus"])) if wide else "car"
            heading = angle + np.pi / 2 * rng.choice([-1, 1]) + rng.normal(0, 0.04)
            plan.put(kind, where + rng.normal(0, 0.15, 2), heading, tight=0.78 if kind == "car" else 0.7)
    for _ in range(rng.poisson(3)):
        plan.put(str(rng.choice(["car", "truck", "bus"], p=[0.6, 0.25, 0.15])), plan.spot(), angle + rng.normal(0, 0.2))


def _decals(plan: SitePlan, canvas: Raster) -> None:
    """Flat paint and patches: arrows, squares, repairs, towels."""
    rng, view = plan.rng, plan.view
    for _ in range(rng.poisson(3)):
        where, angle = plan.spot(), rng.uniform(0, 2 * np.pi)
        size = rng.uniform(0.4, 2.8, 2)
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * size / 2
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        tone = rng.uniform(40, 230)
        colour = (tone, tone, tone) if rng.random() < 0.7 else tuple(rng.uniform(40, 220, 3))
        terrain.paint(canvas, view, [corners @ turn + where], colour, rng.uniform(0.35, 0.9))


def compose(rng: np.random.Generator, view: CameraView, layout: str) -> tuple[Raster, SitePlan]:
    """Paint the ground and place the things of a scene.

    Args:
        rng: The random number generator.
        view: The camera.
        layout: A name in LAYOUTS.

    Returns:
        (the painted ground as a canvas, the plan of the things on it).
    """
    plan = SitePlan(rng, view)
    ground = terrain.base(rng, view, LAYOUTS[layout].grounds, furrowed=layout == "field" and rng.random() < 0.7)
    wet = None
    if layout == "beach" or (layout in ("empty", "field") and rng.random() < 0.25):
        ground, wet = terrain.water(rng, view, ground)
    canvas = terrain.to_canvas(ground)

    def blocked(where: Points, radius: float) -> bool:
        if wet is None:
            return False
        u, v = (view.project(np.array([[*where, 0.0]]))[0] / SUPERSAMPLE).astype(int)
        return bool(0 <= u < view.size and 0 <= v < view.size and wet[v, u])

    LAYOUTS[layout].fill(Site(plan, canvas, _people_scale(view), blocked))
    if layout not in ("road", "field") and wet is None:
        _decals(plan, canvas)
    return canvas, plan


@dataclass(frozen=True)
class Site:
    """A scene that a layout fills.

    Attributes:
        plan: The places of its things.
        canvas: The painted ground, (2 size, 2 size, 3) uint8; a layout paints on it.
        people: The share of people to draw.
        blocked: Returns whether a point lies in the water.
    """

    plan: SitePlan
    canvas: Raster
    people: float
    blocked: KeepOff


def _road_scene(site: Site) -> None:
    plan, rng = site.plan, site.plan.rng
    roads = _roads(plan, site.canvas, int(rng.choice([1, 2], p=[0.65, 0.35])), paved=rng.random() < 0.85)
    _traffic(plan, roads, rng.uniform(0.6, 2.2), ["car", "truck", "bus", "cycle"], [0.52, 0.19, 0.13, 0.16])
    plan.scatter("person", round(site.people * rng.poisson(7)))
    plan.litter(rng.poisson(3))
    plan.green(rng.poisson(12), lambda where, radius: _near(roads, where, radius * 0.2))


def _town_scene(site: Site) -> None:
    plan, rng = site.plan, site.plan.rng
    roads = _roads(plan, site.canvas, int(rng.choice([1, 2, 3], p=[0.4, 0.45, 0.15])), paved=True)
    plan.houses(rng.poisson(9), lambda where, margin: _near(roads, where, margin))
    _traffic(plan, roads, rng.uniform(0.7, 2.2), ["car", "truck", "bus", "cycle"], [0.52, 0.16, 0.16, 0.16])
    plan.crowd(round(site.people * rng.poisson(5)), 1.5)
    plan.scatter("car", rng.poisson(3))
    plan.litter(rng.poisson(3))
    plan.green(rng.poisson(7), lambda where, radius: _near(roads, where, radius * 0.1))


def _lot_scene(site: Site) -> None:
    plan, rng = site.plan, site.plan.rng
    if rng.random() < 0.35:
        plan.houses(2, lambda where, margin: False)
    _lot(plan, site.canvas)
    plan.crowd(round(site.people * rng.poisson(4)), 1.0)
    plan.scatter("cycle", round(site.people * rng.poisson(2)))
    plan.litter(rng.poisson(4))
    plan.green(rng.poisson(3))


def _plaza_scene(site: Site) -> None:
    plan, rng = site.plan, site.plan.rng
    if rng.random() < 0.5:
        _roads(plan, site.canvas, int(rng.integers(1, 3)), paved=False)
    plan.crowd(rng.poisson(6), rng.uniform(0.5, 3.5))
    plan.scatter("person", rng.poisson(4))
    plan.scatter("cycle", rng.poisson(5))
    plan.scatter("car", rng.poisson(0.9))
    plan.scatter("truck", rng.poisson(0.5))
    plan.scatter("bus", rng.poisson(0.3))
    plan.litter(rng.poisson(7), ("crate", "bin", "bench", "rock", "parasol", "pole", "parasol", "bin"))
    plan.green(rng.poisson(7))


def _beach_scene(site: Site) -> None:
    plan, rng = site.plan, site.plan.rng
    for _ in range(rng.poisson(6)):
        centre = plan.spot(0.0)
        if not site.blocked(centre, 0.0):
            for _ in range(1 + rng.poisson(1.6)):
                plan.put("person", centre + rng.normal(0, 1.4, 2), rng.uniform(0, 2 * np.pi), tight=0.75, lying=0.45)
    plan.scatter("person", rng.poisson(5), lying=0.1)
    plan.scatter("cycle", rng.poisson(1), site.blocked)
    plan.scatter("car", rng.poisson(0.8), site.blocked)
    plan.scatter("truck", rng.poisson(0.25), site.blocked)
    plan.litter(rng.poisson(9), ("parasol", "parasol", "rock", "rock", "crate", "bin"))
    plan.green(rng.poisson(1.5), site.blocked)


def _field_scene(site: Site) -> None:
    plan, rng = site.plan, site.plan.rng
    roads = _roads(plan, site.canvas, 1, paved=rng.random() < 0.3) if rng.random() < 0.6 else []
    _traffic(plan, roads, 0.6, ["car", "truck", "cycle"], [0.5, 0.35, 0.15])
    plan.scatter("truck", rng.poisson(0.8), site.blocked)
    plan.scatter("car", rng.poisson(0.6), site.blocked)
    plan.crowd(round(site.people * rng.poisson(2)), 1.5)
    plan.litter(rng.poisson(5), ("bale", "bale", "rock", "shed", "crate", "pole"))
    plan.green(rng.poisson(6), site.blocked)


def _empty_scene(site: Site) -> None:
    plan, rng = site.plan, site.plan.rng
    if rng.random() < 0.4:
        _roads(plan, site.canvas, 1, paved=rng.random() < 0.5)
    plan.litter(rng.poisson(8))
    plan.green(rng.poisson(7))
    if rng.random() < 0.3:
        plan.houses(3, lambda where, margin: False)


class Layout(NamedTuple):
    """A kind of scene.

    Attributes:
        grounds: The textures to choose from.
        px_per_m: The range of the scale, pixels per metre.
        share: Its share of all scenes.
        fill: The function that places the things.
    """

    grounds: tuple[str, ...]
    px_per_m: tuple[float, float]
    share: float
    fill: Callable[[Site], None]


LAYOUTS = {
    "road": Layout(("grass", "dry_grass", "soil", "gravel"), (3.2, 12), 0.24, _road_scene),
    "town": Layout(("concrete", "grass", "asphalt", "gravel"), (3.0, 10), 0.20, _town_scene),
    "lot": Layout(("asphalt", "concrete"), (3.2, 10), 0.17, _lot_scene),
    "plaza": Layout(("concrete", "grass", "gravel", "sand"), (6.5, 18), 0.17, _plaza_scene),
    "beach": Layout(("sand",), (6.5, 16), 0.09, _beach_scene),
    "field": Layout(("crop", "soil", "grass", "dry_grass"), (3.2, 14), 0.08, _field_scene),
    "empty": Layout(tuple(terrain.GROUNDS), (3.0, 14), 0.05, _empty_scene),
}
