"""Figures of a window of time: pure functions of a Series.

A window is (start_ns, end_ns) by time.monotonic_ns. Every figure needs at least `ENOUGH` samples in its window, and no
gap (ends included) of more than half of it; else it is None: not measured. A sampled mean misses changes between two
samples. Over many frames this averages out, over a few it does not.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

from edgeprune_device.probes.power import total
from edgeprune_device.probes.series import Series

__all__ = ["ENOUGH", "Window", "clocks", "power", "thermal", "throttling"]

ENOUGH = 5
Window = Tuple[int, int]
Points = List[Tuple[int, float]]


def power(
    series: Optional[Series], idle_window: Optional[Window], load_window: Window, frames: int
) -> Optional[Dict[str, Any]]:
    """Power and energy of a run.

    gross = mean load power x the window's length / frames; net: the same of (load - idle).

    Args:
        series: The samples.
        idle_window: Window at rest; None: there is none, and the net figures are None.
        load_window: Window of the load.
        frames: Number of frames in that window.

    Returns:
        {"source", "whole_module", "idle_mw", "load_mw", "mj_per_frame_gross", "mj_per_frame_net", "samples", "rails"};
            "rails" has the same figures of every rail. None: no power was measured under load.
    """
    names = [] if series is None else series.names("power")
    whole = total(names)
    if whole is None:
        return None
    rails = {name: _energy(series.points("power", name), idle_window, load_window, frames) for name in names}
    summed = _energy(_sum(series, whole.rails), idle_window, load_window, frames)
    if summed["load_mw"] is None and all(rail["load_mw"] is None for rail in rails.values()):
        return None
    return {"source": whole.source, "whole_module": whole.whole_module, **summed, "rails": rails}


def thermal(series: Optional[Series], load_window: Window) -> Optional[Dict[str, Dict[str, float]]]:
    """{zone: {"start_c", "end_c", "max_c"}}: the first, the last and the highest temperature in the window, C."""
    found = {}
    for name in [] if series is None else series.names("temperature"):
        values = [value for _, value in _enough(series.points("temperature", name), load_window)]
        if values:
            found[name] = {"start_c": values[0], "end_c": values[-1], "max_c": max(values)}
    return found or None


def clocks(series: Optional[Series], load_window: Window) -> Optional[Dict[str, Dict[str, float]]]:
    """{name: {"min_hz", "mean_hz", "max_hz"}} in the window."""
    found = {}
    for name in [] if series is None else series.names("clock"):
        points = _enough(series.points("clock", name), load_window)
        if points:
            values = [value for _, value in points]
            found[name] = {"min_hz": min(values), "mean_hz": round(_mean(points)), "max_hz": max(values)}
    return found or None


def throttling(series: Optional[Series], load_window: Window) -> Optional[Dict[str, Dict[str, Optional[int]]]]:
    """{"events": {name: count}, "states": {name: the highest}}; None instead of a number: not known.

    The count of an event is the counter's difference from its last value before the window to the last one in it.
    """
    events = [] if series is None else series.names("event")
    states = [] if series is None else series.names("throttle")
    if not events and not states:
        return None
    return {
        "events": {name: _difference(series.points("event", name), load_window) for name in events},
        "states": {
            name: max((int(value) for _, value in _enough(series.points("throttle", name), load_window)), default=None)
            for name in states
        },
    }


def _energy(points: Points, idle: Optional[Window], load: Window, frames: int) -> Dict[str, Any]:
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
    """The sum of several rails, only where every rail has a value: a sum without one of them is another figure."""
    columns = [series.channels[f"power.{rail}"][2] for rail in rails]
    rows = zip(series.t_ns, zip(*columns)) if columns else ()
    return [(t, sum(row)) for t, row in rows if None not in row]


def _enough(points: Points, window: Window) -> Points:
    """The points in the window; none where they are too few or leave a large gap."""
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
        return None  # one value has no difference; a counter that falls was reset in between
    return int(counted[-1] - counted[0])


def _rounded(value: Optional[float], digits: int) -> Optional[float]:
    return None if value is None else round(value, digits)
