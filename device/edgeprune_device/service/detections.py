"""One frame's detections as one line of JSON, `schema/detections.json`.

An example:

    {"schema_version": 1, "frame": 17, "time": "2026-11-24T12:00:00.040Z", "boot_s": 93.114, "release":
     "9f86d081884c7d65", "source": "camera frame 17", "width": 1280, "height": 720, "ms": {"decode": 1.31, "pre": 2.07,
     "infer": 11.45, "post": 0.38}, "age_ms": 17.42, "detections": [{"class": 2, "name": "car", "score": 0.8714, "box":
     [411.2, 97.5, 502.8, 160.1]}]}

The line is formatted by hand, because json.dumps takes several times as long per frame.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Sequence, Tuple

import numpy as np

from edgeprune_device import clock
from edgeprune_device.vision import detect
from edgeprune_device.vision.task import Task

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Lines"]

_SECOND_NS = 10**9


class Lines:
    """Formats the line of a frame: Lines(release, classes)(number, name, at_ns, shape, times, detections) -> bytes.

    Args:
        release: ID of the release.
        classes: Names of the classes.
        task: The task.
    """

    def __init__(self, release: str, classes: Sequence[str], task: Task = detect.TASK):
        self._task = task
        self._head = '{"schema_version": 1, "frame": %d, "time": %s, "boot_s": %.3f, ' + (
            f'"release": {json.dumps(release)}, "source": ' + '%s, "width": %d, "height": %d, '
            '"ms": {"decode": %.3f, "pre": %.3f, "infer": %.3f, "post": %.3f}, "age_ms": %.3f, "detections": ['
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
        detections: npt.NDArray[Any],
    ) -> bytes:
        """Format one frame.

        Args:
            number: Number of the frame.
            name: Name of the frame.
            at_ns: Time of the frame, time.monotonic_ns; "time" is null if the wall clock has not been set.
            shape: Shape of the upright image, (h, w, …).
            times: Duration of each of the four stages, and the age of the result: time from `at_ns` to the end of the
                last stage; ns.
            detections: (n, columns + 2) rows of the task, px of that image.

        Returns:
            The line, including the newline.
        """
        wall, boot_s = self._clock.at(at_ns)
        # A file name may be invalid Unicode; "?" replaces the invalid characters.
        quoted_name = json.dumps(name.encode("utf-8", "replace").decode("utf-8"))
        ms = [ns / 1e6 for ns in times]
        head = self._head % (number, wall, boot_s, quoted_name, shape[1], shape[0], *ms)
        if not np.isfinite(detections).all():  # from a broken model; JSON has no NaN or infinity
            detections = detections[np.isfinite(detections).all(axis=1)]
        labels = self._labels
        objects = ", ".join(
            [
                f"{labels[int(c)]}{fields}}}"
                for c, fields in zip(detections[:, -1].tolist(), self._task.fields(detections, shape))
                if 0 <= c < len(labels)  # a network with its own NMS may return any class index
            ]
        )
        return (head + objects + "]}\n").encode("ascii")


class _Clock:
    """Converts time.monotonic_ns() to (wall clock as JSON, seconds since boot); reads other clocks once a second."""

    def __init__(self) -> None:
        self._asked_ns = -_SECOND_NS
        self._second, self._text = -1, ""
        self._set = False
        self._wall_ns = self._boot_ns = 0

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
        self._set = clock.synchronized() is True
