"""The source of the next frame in each mode, and the count of frames that arrive by themselves."""

from __future__ import annotations

from array import array
from collections import deque
from typing import Any, Callable, Deque, Dict, Optional, Sequence, Tuple

from edgeprune_device import sources
from edgeprune_device.errors import InputError
from edgeprune_device.option import named
from edgeprune_device.reports import percentiles

__all__ = ["Feed", "timing_summary"]

_FRAME_TIMEOUT_S = 10.0

_PACES_FPS = (0.1, 1000)


class Feed:
    """The source of the next frame in each mode, and the count of a camera's frames.

    Args:
        source: The source.
        mode: One of `benchmark.options.MODES`; None: "camera" for a live source or with `fps`, else "single".
        fps: Frame rate of mode "camera", frames/s.

    Attributes:
        mode: The mode.
        source: The source, paced if mode "camera" needs it.
        fps: Frame rate of mode "camera" if known, else None.
        next: Returns the next frame.

    Raises:
        InputError: Source, mode and frame rate do not fit together.
    """

    def __init__(self, source: sources.Source, mode: Optional[str], fps: Optional[float]):
        self.mode = mode or ("camera" if source.live or fps else "single")
        if source.live and self.mode != "camera":
            camera = named("mode", "camera")
            raise InputError(f"{named('mode', self.mode)}: not available with a live camera; use {camera}")
        if fps and self.mode != "camera":
            raise InputError(f"{named('fps')}: applies only to mode camera (found mode {self.mode}); leave it out")
        if self.mode == "camera" and not source.live:
            pace = fps or source.fps
            if not pace:
                name = named("fps")
                raise InputError(
                    f"{name}: missing; mode camera needs the rate, frames/s, at which to play these images"
                )
            if not _PACES_FPS[0] <= pace <= _PACES_FPS[1]:
                limits = f"{_PACES_FPS[0]} to {_PACES_FPS[1]} frames/s"
                raise InputError(
                    f"frame rate of the camera: invalid value (found {pace:g}, expected {limits}); set {named('fps')}"
                )
            source = sources.Paced(source, pace)
        self.source, self.fps = source, (source.fps or fps) if self.mode == "camera" else None
        self._ages_ns = array("q")
        # The counts at the frame before the first one, at the last complete one, and at those in the pipeline: a frame
        # that was taken but not processed does not count.
        self._before = self._after = (0, 0, 0)
        self._taken: Deque[Tuple[int, int, int]] = deque()
        self.next: Callable[[], sources.Frame] = self._next if self.mode == "camera" else source.frames().__next__

    def begin(self) -> None:
        """Count frames from now on, starting after the current one."""
        if self.mode == "camera":
            self.next()
            self._before = self._taken[-1]
            self._taken.clear()

    def done(self, frame: sources.Frame, end_ns: int) -> None:
        """Record that the result of a measured frame is complete; the frames are in the order of `next`.

        Args:
            frame: The frame.
            end_ns: End of its last stage, time.monotonic_ns.
        """
        if self.mode == "camera":
            self._ages_ns.append(end_ns - frame.due_ns)
            self._after = self._taken.popleft()

    def camera(self) -> Optional[Dict[str, Any]]:
        """The report's `camera`; None in the other modes."""
        if self.mode != "camera" or not self._ages_ns:
            return None
        arrived, dropped, late = (now - then for now, then in zip(self._after, self._before))
        deadline_ns = 1e9 / self.fps if self.fps else None
        return {
            "fps": self.fps,
            "deadline_ms": None if deadline_ns is None else deadline_ns / 1e6,
            "arrived": arrived,
            "dropped": dropped,
            "late": late,
            "processed": len(self._ages_ns),
            "missed": None if deadline_ns is None else sum(age > deadline_ns for age in self._ages_ns),
            "age": timing_summary(self._ages_ns),
        }

    def _next(self) -> sources.Frame:
        source = self.source
        frame = source.next(_FRAME_TIMEOUT_S)
        self._taken.append((source.arrived, source.dropped, source.late))
        return frame


def timing_summary(ns: Sequence[int]) -> Dict[str, Any]:
    """Add the samples as "samples_ns" to their `percentiles.summary`.

    Args:
        ns: Samples, ns.
    """
    return {**percentiles.summary(ns), "samples_ns": list(ns)}
