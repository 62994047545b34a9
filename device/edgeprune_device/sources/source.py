"""The interface of all sources of frames: `Source` and `Frame`.

The module does not depend on files, decoders or cameras.
"""

from __future__ import annotations

from typing import Any, Iterator, NamedTuple, Optional, Tuple

import numpy as np

__all__ = ["Frame", "Source"]

_TIMEOUT_S = 10.0  # for iterating over a live source; slower than any camera


class Frame(NamedTuple):
    r"""One frame, not decoded yet: Frame("a.jpg", b"\xff\xd8…", 0).

    Attributes:
        name: Name of the frame.
        data: Input of the source's own `decode`; other code does not use it.
        due_ns: time.monotonic_ns when the frame was complete in this process; 0 if it existed from the start.
    """

    name: str
    data: Any
    due_ns: int


class Source:
    """A source of frames. Use it as a context manager, or call `close`.

    Attributes:
        name: Kind of the source, e.g. "pictures".
        description: One line for the report, e.g. "video a.mp4, 1280x720, 30 fps, by ffmpeg 5.1, decoded ahead".
        live: Frames arrive by themselves and cannot wait: take them with `next`; see also `arrived`, `dropped`, `late`.
        fps: Frames/s of the video or the camera if known, else None.
        streamed: A decoder makes the frames in order, and `decode` waits for it.
        late: For a live source: number of frames later than its frame rate requires.
    """

    name: str = ""
    description: str = ""
    live: bool = False
    fps: Optional[float] = None
    streamed: bool = False
    late: int = 0
    _warnings: Tuple[str, ...] = ()

    @property
    def warnings(self) -> Tuple[str, ...]:
        """Remarks for the reader of the figures, one line each; more may follow while frames are taken."""
        return self._warnings

    @property
    def arrived(self) -> int:
        """For a live source: number of frames that arrived since its start."""
        return 0

    @property
    def dropped(self) -> int:
        """For a live source: number of frames that a newer one replaced before they were taken."""
        return 0

    def frames(self) -> Iterator[Frame]:
        """Endless frames: a source with an end starts again, unless it was opened to be read once.

        Raises:
            DeviceError: A camera has ended.
        """
        while True:
            yield self.next(_TIMEOUT_S)

    def next(self, timeout_s: float) -> Frame:
        """For a live source: the newest frame that was not taken yet, or the next one.

        Raises:
            DeviceError: No frame arrived within `timeout_s`.
        """
        raise NotImplementedError

    def decode(self, frame: Frame) -> np.ndarray:
        """Decode a frame; the stage "decode" times this.

        Returns:
            (h, w, 3) uint8 RGB.

        Raises:
            InputError: The image cannot be decoded; the message names it.
            EOFError: A streamed source that is read once has ended before this frame.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End threads and programs that belong to the source; a second call has no effect."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
