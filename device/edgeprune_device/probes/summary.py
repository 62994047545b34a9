"""Figures of a window of time: pure functions of a Series.

A window is (start_ns, end_ns) in time.monotonic_ns. Every figure needs at least `ENOUGH` samples in its window, and no
gap (including the ends) of more than half of the window; otherwise it is None, not measured. A sampled mean misses
changes between two samples, which averages out only over many frames.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple, TypedDict

from edgeprune_device.probes.power import total
from edgeprune_device.probes.series import Series

__all__ = [
    "ENOUGH", "Energy", "Power", "Rate", "Temperature", "Window", "clocks", "power", "thermal", "throttling",
]  # fmt: skip

ENOUGH = 5
Window = Tuple[int, int]
Points = List[Tuple[int, float]]


class Energy(TypedDict):
    """Power and energy of one rail, or of the whole.

    Attributes:
        idle_mw: Mean idle power.
        load_mw: Mean power under load.
        mj_per_frame_gross: Energy per frame.
        mj_per_frame_net: Energy per frame above idle.
        samples: Number of samples under load.
    """

    idle_mw: Optional[float]
    load_mw: Optional[float]
    mj_per_frame_gross: Optional[float]
    mj_per_frame_net: Optional[float]
    samples: int


class Power(Energy):
    """Power and energy of the board.

    Attributes:
        source: Description of the sensors.
        whole_module: Whether a single sensor measures the whole.
        rails: The figures of every rail, by name.
    """

    source: str
    whole_module: bool
    rails: Dict[str, Energy]


class Temperature(TypedDict):
    """The temperatures of a zone in a window, C.

    Attributes:
        start_c: The first one.
        end_c: The last one.
        max_c: The highest one.
    """

    start_c: float
    end_c: float
    max_c: float


class Rate(TypedDict):
    """The rates of a clock in a window, Hz.

    Attributes:
        min_hz: The lowest one.
        mean_hz: The mean.
        max_hz: The highest one.
    """

    min_hz: float
    mean_hz: float
    max_hz: float


def power(series: Optional[Series], idle_window: Optional[Window], load_window: Window, frames: int) -> Optional[Power]:
    """Power and energy of a run.

    gross = mean load power x the window's length / frames; net: the same with (load - idle).

    Args:
        series: The samples.
        idle_window: Idle window; None: the net figures are None.
        load_window: Window of the load.
        frames: Number of frames in that window.

    Returns:
        The figures; None: no power was measured under load.
    """
    if series is None:
        return None
    names = series.names("power")
    whole = total(names)
    if whole is None:
        return None
    rails = {name: _energy(series.points("power", name), idle_window, load_window, frames) for name in names}
    summed = _energy(_sum(series, whole.rails), idle_window, load_window, frames)
    if summed["load_mw"] is None and all(rail["load_mw"] is None for rail in rails.values()):
        return None
    return {"source": whole.source, "whole_module": whole.whole_module, **summed, "rails": rails}


def thermal(series: Optional[Series], load_window: Window) -> Optional[Dict[str, Temperature]]:
    """The temperatures of each zone in the window, by the zone's name; None without any."""
    if series is None:
        return None
    by_zone: Dict[str, Temperature] = {}
    for name in series.names("temperature"):
        values = [value for _, value in _enough(series.points("temperature", name), load_window)]
        if values:
            by_zone[name] = {"start_c": values[0], "end_c": values[-1], "max_c": max(values)}
    return by_zone or None


def clocks(series: Optional[Series], load_window: Window) -> Optional[Dict[str, Rate]]:
    """The rates of each clock in the window, by the clock's name; None without any."""
    if series is None:
        return None
    by_clock: Dict[str, Rate] = {}
    for name in series.names("clock"):
        points = _enough(series.points("clock", name), load_window)
        if points:
            values = [value for _, value in points]
            by_clock[name] = {"min_hz": min(values), "mean_hz": round(_mean(points)), "max_hz": max(values)}
    return by_clock or None


def throttling(series: Optional[Series], load_window: Window) -> Optional[Dict[str, Dict[str, Optional[int]]]]:
    """{"events": {name: count}, "states": {name: the highest}}; None instead of a number: not known.

    The count of an event is the counter's difference from its last value before the window to the last one in it.
    """
    if series is None:
        return None
    events, states = series.names("event"), series.names("throttle")
    if not events and not states:
        return None
    return {
        "events": {name: _difference(series.points("event", name), load_window) for name in events},
        "states": {
            name: max((int(value) for _, value in _enough(series.points("throttle", name), load_window)), default=None)
            for name in states
        },
    }


def _energy(points: Points, idle: Optional[Window], load: Window, frames: int) -> Energy:
    inside = _enough(points, load)
    load_mw = _mean(inside) if inside else None
    resting = [] if idle is None else _enough(points, idle)
    idle_mw = _mean(resting) if resting else None
    seconds = (load[1] - load[0]) / 1e9
    gross = net = None
    if load_mw is not None and frames > 0:
        gross = load_mw * seconds / frames
        net = None if idle_mw is None else (load_mw - idle_mw) * seconds / frames
    return {
        "idle_mw": _rounded(idle_mw, 1),
        "load_mw": _rounded(load_mw, 1),
        "mj_per_frame_gross": _rounded(gross, 4),
        "mj_per_frame_net": _rounded(net, 4),
        "samples": len(inside),
    }


def _sum(series: Series, rails: Tuple[str, ...]) -> Points:
    """The sum of several rails, only at times at which every rail has a value."""
    columns = [series.channels[f"power.{rail}"][2] for rail in rails]
    rows = zip(series.t_ns, zip(*columns)) if columns else ()
    return [(t, sum(row)) for t, row in rows if None not in row]


def _enough(points: Points, window: Window) -> Points:
    """The points in the window; none if they are too few or leave a large gap."""
    start, end = window
    inside = [(t, value) for t, value in points if start <= t <= end]
    if len(inside) < ENOUGH:
        return []
    times = [start, *(t for t, _ in inside), end]
    return inside if max(b - a for a, b in zip(times, times[1:])) * 2 <= end - start else []


def _mean(points: Points) -> float:
    """The mean by the trapezoidal rule, so that uneven times are weighted correctly."""
    area = sum((b - a) * (x + y) / 2 for (a, x), (b, y) in zip(points, points[1:]))
    return area / (points[-1][0] - points[0][0])


def _difference(points: Points, window: Window) -> Optional[int]:
    inside = [value for t, value in points if window[0] <= t <= window[1]]
    counted = [value for t, value in points if t < window[0]][-1:] + inside
    if not inside or len(counted) < 2 or any(a > b for a, b in zip(counted, counted[1:])):
        return None  # one value has no difference; a decreasing counter was reset in between
    return int(counted[-1] - counted[0])


def _rounded(value: Optional[float], digits: int) -> Optional[float]:
    return None if value is None else round(value, digits)
