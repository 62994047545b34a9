"""One frame's detections as one line of JSON, `schema/detections.json`.

An example:

    {"schema_version": 1, "frame": 17, "time": "2026-11-24T12:00:00.040Z", "boot_s": 93.114, "release":
     "9f86d081884c7d65", "source": "camera frame 17", "width": 1280, "height": 720, "ms": {"decode": 1.31, "pre": 2.07,
     "infer": 11.45, "post": 0.38}, "detections": [{"class": 2, "name": "car", "score": 0.8714, "box": [411.2, 97.5,
     502.8, 160.1]}]}

The line is formatted by hand, because json.dumps with its dictionaries takes several times as long for every frame.
"""

from __future__ import annotations

import ctypes
import json
import time
from typing import Optional, Sequence, Tuple

import numpy as np

__all__ = ["Lines"]

_SECOND_NS = 10**9
_TIME_ERROR = 5  # adjtimex(2): nothing has set this clock


class Lines:
    """Formats the line of a frame: Lines(release, classes)(number, name, at_ns, shape, times, found) -> bytes.

    Args:
        release: ID of the release.
        classes: Names of the classes.
    """

    def __init__(self, release: str, classes: Sequence[str]):
        self._head = '{"schema_version": 1, "frame": %d, "time": %s, "boot_s": %.3f, ' + (
            f'"release": {json.dumps(release)}, "source": ' + '%s, "width": %d, "height": %d, '
            '"ms": {"decode": %.3f, "pre": %.3f, "infer": %.3f, "post": %.3f}, "detections": ['
        )
        self._labels = [f'{{"class": {i}, "name": {json.dumps(name)}, ' for i, name in enumerate(classes)]
        self._clock = _Clock()

    def __call__(
        self,
        number: int,
        name: str,
        at_ns: int,
        shape: Sequence[int],
        times: Tuple[int, int, int, int, int],
        found: np.ndarray,
    ) -> bytes:
        """Format one frame.

        Args:
            number: Number of the frame.
            name: Name of the frame.
            at_ns: Moment of the frame, time.monotonic_ns; "time" is null where the wall clock has not been set.
            shape: Shape of the upright image, (h, w, …).
            times: Begin of the four stages and end of the last one, time.monotonic_ns.
            found: (n, 6) [x1, y1, x2, y2, score, class], px of that image.

        Returns:
            The line, with its end of line.
        """
        a, b, c, d, e = times
        wall, boot_s = self._clock.at(at_ns)
        # A file's name may not be Unicode: "?" then replaces the wrong characters.
        said = json.dumps(name.encode("utf-8", "replace").decode("utf-8"))
        ms = (b - a) / 1e6, (c - b) / 1e6, (d - c) / 1e6, (e - d) / 1e6
        head = self._head % (number, wall, boot_s, said, shape[1], shape[0], *ms)
        if not np.isfinite(found).all():  # a broken model's; JSON has no word for it
            found = found[np.isfinite(found).all(axis=1)]
        labels = self._labels
        boxes = ", ".join(
            [
                labels[int(c)] + '"score": %.4f, "box": [%.1f, %.1f, %.1f, %.1f]}' % (s, x1, y1, x2, y2)
                for x1, y1, x2, y2, s, c in found.tolist()
                if 0 <= c < len(labels)  # a network with its own NMS may give any class
            ]
        )
        return (head + boxes + "]}\n").encode("ascii")


class _Clock:
    """time.monotonic_ns() -> (wall clock as JSON, seconds since the boot); it reads the other clocks once a second."""

    def __init__(self) -> None:
        self._asked_ns = -_SECOND_NS
        self._second, self._text = -1, ""
        self._set = False
        self._wall_ns = self._boot_ns = 0
        self._adjtimex = _adjtimex()

    def at(self, ns: int) -> Tuple[str, float]:
        if not 0 <= ns - self._asked_ns < _SECOND_NS:
            self._ask(ns)
        wall_ns = ns + self._wall_ns
        if self._set:
            second = wall_ns // _SECOND_NS
            if second != self._second:
                self._second, self._text = second, time.strftime('"%Y-%m-%dT%H:%M:%S', time.gmtime(second))
            wall = f'{self._text}.{wall_ns % _SECOND_NS // 10**6:03d}Z"'
        else:
            wall = "null"
        return wall, (ns + self._boot_ns) / 1e9

    def _ask(self, ns: int) -> None:
        now = time.monotonic_ns()
        self._asked_ns = ns
        self._wall_ns, self._boot_ns = time.time_ns() - now, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - now
        state = self._adjtimex(ctypes.create_string_buffer(512)) if self._adjtimex else None  # zeros: only ask
        self._set = state is not None and 0 <= state != _TIME_ERROR


def _adjtimex() -> Optional[ctypes._CFuncPtr]:
    try:
        return ctypes.CDLL(None).adjtimex
    except (OSError, AttributeError):
        return None
