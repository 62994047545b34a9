"""Turns any source into a camera with a given frame rate.

Frame k is due at start + k / fps, even if the previous one is still being processed.
"""

from __future__ import annotations

import time
from typing import Callable, Generator, Iterator, Optional, Tuple

import numpy as np

from edgeprune_device.errors import DeviceError
from edgeprune_device.sources.reader import Reader
from edgeprune_device.sources.source import Frame, Source

__all__ = ["Paced"]


class Paced(Source):
    """A source that is not live, at a frame rate: Paced(source, fps=30). The first frame is due when it is requested.

    Images need no thread, which would disturb the measurement: the clock determines how many were due. The frames of a
    video have to be decoded in order, so a thread takes each one when it is due; `decode` then finds it ready.
    If a source has a frame ready only after it was due, the frame counts as `late` and is due when it is ready. As with
    a camera, its age is then its time in this process.

    Args:
        source: The source.
        fps: The frame rate, frames/s.
        clock: Returns the time, ns; replaced in tests only.
        sleep: Waits for seconds; replaced in tests only.
    """

    live = True

    def __init__(
        self,
        source: Source,
        fps: float,
        clock: Callable[[], int] = time.monotonic_ns,
        # Not Event.wait, which hangs before Python 3.11 if the clock is set back.
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.name, self.fps = source.name, fps
        self.description = f"{source.description}, paced at {fps:g} fps"
        self.late = 0
        self._source, self._fps, self._clock, self._sleep = source, fps, clock, sleep
        self._start_ns = 0  # when frame 0 was due; set with the first frame
        self._frames: Optional[Iterator[Frame]] = None
        self._reader: Optional[Reader[Frame]] = None
        self._arrived = self._dropped = 0

    @property
    def warnings(self) -> Tuple[str, ...]:
        """The warnings of the source."""
        return self._source.warnings

    @property
    def arrived(self) -> int:
        """Number of frames that were due; for images as of the latest `next`."""
        return self._reader.arrived if self._reader else self._arrived

    @property
    def dropped(self) -> int:
        """Number of frames that a newer one replaced before they were taken."""
        return self._reader.dropped if self._reader else self._dropped

    def next(self, timeout_s: float) -> Frame:
        """The newest frame that is due, or the next one when it is due.

        Raises:
            DeviceError: The source gives no frame for `timeout_s`.
        """
        if not self._source.streamed:
            return self._newest()
        if self._reader is None:
            self._reader = Reader(self._on_time(), capacity=1, newest=True)
        try:
            return self._reader.take(timeout_s + 1 / self._fps)
        except TimeoutError:
            raise DeviceError(f"{self.description}: no frame for {timeout_s:g} s") from None

    def decode(self, frame: Frame) -> np.ndarray:
        """Decode with the source; a frame of a video is already decoded."""
        return frame.data if self._source.streamed else self._source.decode(frame)

    def close(self) -> None:
        """Close the source, too."""
        self._source.close()
        if self._reader is not None:
            self._reader.close()

    def _due_ns(self, number: int) -> int:
        return self._start_ns + int(number * 1e9 / self._fps)

    def _newest(self) -> Frame:
        """The newest due frame, by the clock."""
        if self._frames is None:
            self._frames, self._start_ns = self._source.frames(), self._clock()
        while True:
            now = self._clock()
            if self._due_ns(self._arrived) <= now:
                break
            self._sleep((self._due_ns(self._arrived) - now) / 1e9)
        while self._due_ns(self._arrived + 1) <= now:
            next(self._frames)
            self._arrived += 1
            self._dropped += 1
        self._arrived += 1
        return next(self._frames)._replace(due_ns=self._due_ns(self._arrived - 1))

    def _on_time(self) -> Generator[Frame, None, None]:
        """The frames of a video when they are due, for a reader's thread."""
        for number, frame in enumerate(self._source.frames()):
            image, ready = self._source.decode(frame), self._clock()
            self._start_ns = self._start_ns or ready  # the start of the decoder makes no frame late
            due = self._due_ns(number)
            if ready > due:
                self.late += 1
            else:
                self._sleep((due - ready) / 1e9)
            yield Frame(frame.name, image, max(due, ready))
