"""The interface of every source of frames: `Source`, and the `Frame`s that it gives.

The module does not depend on files, decoders or cameras.
"""

from __future__ import annotations

from typing import Any, Iterator, NamedTuple, Optional, Tuple

import numpy as np

__all__ = ["Frame", "Source"]

_TIMEOUT_S = 10.0  # for a live source that is iterated; slower than any camera


class Frame(NamedTuple):
    r"""One frame, not decoded yet: Frame("a.jpg", b"\xff\xd8…", 0).

    Attributes:
        name: Name of the frame.
        data: Input of the source's own `decode`; other code does not use it.
        due_ns: time.monotonic_ns when the frame was complete in this process; 0 where it was there from the start.
    """

    name: str
    data: Any
    due_ns: int


class Source:
    """A source of frames. Use it as a context manager, or call `close`.

    Attributes:
        name: Kind of the source, e.g. "pictures".
        description: One line for the report, e.g. "video a.mp4, 1280x720, 30 fps, by ffmpeg 5.1, decoded ahead".
        live: Frames arrive by themselves and cannot wait: take them by `next`, and see `arrived`, `dropped`, `late`.
        fps: Frames a second of the video or the camera where it is known, else None.
        warnings: Remarks for the reader of the figures, one line each; may grow while frames are taken.
        streamed: A decoder makes the frames in order, and `decode` waits for it.
        arrived: Of a live source: number of frames that came since its start.
        dropped: Of a live source: number of frames that a newer one replaced before they were taken.
        late: Of a live source: number of frames that came later than its pace requires.
    """

    name: str = ""
    description: str = ""
    live: bool = False
    fps: Optional[float] = None
    warnings: Tuple[str, ...] = ()
    streamed: bool = False
    arrived: int = 0
    dropped: int = 0
    late: int = 0

    def frames(self) -> Iterator[Frame]:
        """Frames without end: a source with an end starts again, except where it was opened to be read once.

        Raises:
            DeviceError: A camera has gone.
        """
        while True:
            yield self.next(_TIMEOUT_S)

    def next(self, timeout_s: float) -> Frame:
        """Of a live source: the newest frame that has not been taken yet, or the next one.

        Raises:
            DeviceError: No frame came for `timeout_s`.
        """
        raise NotImplementedError

    def decode(self, frame: Frame) -> np.ndarray:
        """Decode a frame; the stage "decode" times this.

        Returns:
            (h, w, 3) uint8 RGB.

        Raises:
            InputError: The image cannot be decoded; the message names it.
            EOFError: A streamed source that is read once has no such frame any more.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End threads and programs that belong to the source; a second call has no effect."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc) -> None:
        self.close()
