"""What every source of frames is: `Source`, and the `Frame`s that it gives.

Knows nothing of files, decoders or cameras.
"""

from __future__ import annotations

from typing import Any, Iterator, NamedTuple, Optional, Tuple

import numpy as np

__all__ = ["Frame", "Source"]

_TIMEOUT_S = 10.0  # for a live source that is iterated; slower than any camera


class Frame(NamedTuple):
    """One frame, not decoded yet: Frame("a.jpg", b"\\xff\\xd8…", 0).

    - `data`: what the source's own `decode` takes; nobody else looks into it
    - `due_ns`: `time.monotonic_ns()` when the frame was complete in this process; 0 where it was there all the time
    """

    name: str
    data: Any
    due_ns: int


class Source:
    """Where frames come from. Use as a context manager, or call `close`.

    - `name`: the kind, e.g. "pictures"
    - `description`: one line for the report, e.g. "video a.mp4, 1280x720, 30 fps, by ffmpeg 5.1, decoded ahead"
    - `live`: frames arrive by themselves and cannot wait: take them by `next`, and see `arrived`, `dropped`, `late`
    - `fps`: of the video or the camera where it says, else None
    - `warnings`: what whoever reads the figures should know, one line each; may grow while frames are taken
    - `streamed`: a decoder makes the frames in order, and `decode` waits for it
    - `arrived`, `dropped`, `late`: of a live source, since its start: frames that came, that were replaced by a newer
      one before anybody took them, and that came later than its pace says
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
        """Frames without end: what has an end begins anew, but where it was opened to be read once. A camera that is
        gone is a DeviceError."""
        while True:
            yield self.next(_TIMEOUT_S)

    def next(self, timeout_s: float) -> Frame:
        """Of a live source: the newest frame that nobody took yet, or the next one. DeviceError after `timeout_s`."""
        raise NotImplementedError

    def decode(self, frame: Frame) -> np.ndarray:
        """(h, w, 3) uint8 RGB; what the stage "decode" times. InputError names the picture that cannot be decoded.

        EOFError: of a streamed source that is read once, there is no such frame any more.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End threads and programs that belong to the source; calling it twice does no harm."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc) -> None:
        self.close()
