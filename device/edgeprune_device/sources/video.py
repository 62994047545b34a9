"""A video file, repeatedly or once, decoded with the first of OpenCV, ffmpeg and GStreamer that can.

A thread decodes a few frames ahead, so the stage "decode" is the time to get the next frame in RGB: almost zero if the
decoder is faster than the other stages, otherwise the decoder's own time.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Callable, Generator, Iterator, List, Optional, Protocol, Tuple

import numpy as np

from edgeprune_device.errors import DeviceError, InputError, RuntimeUnavailable
from edgeprune_device.sources import ffmpeg, gstreamer, opencv
from edgeprune_device.sources.reader import Reader
from edgeprune_device.sources.source import Frame, Source
from edgeprune_device.vision.evaluation import EvaluationSet

__all__ = ["DECODERS", "Video", "open", "takes"]

DECODERS = (opencv, ffmpeg, gstreamer)  # each with `available()` and `Clip(path)`
_AHEAD = 4  # frames; 25 MB at 1920x1080
_TIMEOUT_S = 30.0  # far longer than a decoder needs to start on a busy board


class Clip(Protocol):
    """A video file that a decoder has opened.

    Attributes:
        description: Name of the decoder.
        fps: Frames/s, None if not known.
    """

    description: str
    fps: Optional[float]

    def images(self) -> Iterator[np.ndarray]:
        """The frames from first to last, RGB."""

    def close(self) -> None:
        """End the decoder."""


class Video(Source):
    """A video, decoded by one of the decoders.

    Args:
        path: The file.
        clip: The decoder's clip.
        once: End after the last frame instead of starting again.

    Raises:
        InputError: The decoder cannot decode the file.
        DeviceError: The decoder gives no frame in time.
    """

    name = "video"
    streamed = True

    def __init__(self, path: Path, clip: Clip, once: bool = False):
        self._path, self._clip, self._once = path, clip, once
        self._taken = (-1, np.empty(0, np.uint8))  # number and image; nothing yet
        self._reader = Reader(self._images(), _AHEAD)
        try:
            _, first = self._take(self._reader.peek)
        except BaseException:
            self.close()
            raise
        self.fps = clip.fps
        pace = f"{self.fps:.4g} fps" if self.fps else "unknown fps"
        size = f"{first.shape[1]}x{first.shape[0]}"
        self.description = f"video {path}, {size}, {pace}, by {clip.description}, decoded ahead by a thread"

    def frames(self) -> Iterator[Frame]:
        """Frames with numbers as data; `decode` gives the image. After the last frame, the first one follows."""
        return (Frame(f"{self._path} frame {number}", number, 0) for number in itertools.count())

    def decode(self, frame: Frame) -> np.ndarray:
        """Wait for a frame; earlier ones are skipped.

        Raises:
            InputError: The video is cut off.
            EOFError: The video has ended, with `once`.
        """
        while self._taken[0] < frame.data:
            self._taken = self._take(self._reader.take)
        return self._taken[1]

    def close(self) -> None:
        """End the decoder."""
        self._clip.close()
        self._reader.close()

    def _take(self, how: Callable[[float], Tuple[int, np.ndarray]]) -> Tuple[int, np.ndarray]:
        try:
            return how(_TIMEOUT_S)
        except TimeoutError:
            raise DeviceError(f"{self._path}: no frame from {self._clip.description} for {_TIMEOUT_S:g} s") from None

    def _images(self) -> Generator[Tuple[int, np.ndarray], None, None]:
        number = 0
        while True:
            begin = number
            for image in self._clip.images():
                if not self.warnings and number == begin > 0:
                    self._warnings = (f"the video of {number} frames was repeated; its decoder restarts each time",)
                yield number, image
                number += 1
            if number == begin:
                raise InputError("no frame could be decoded")
            if self._once:
                raise EOFError


def takes(text: str) -> bool:
    """Whether the text is an existing file; the kinds before this one are tried first."""
    return Path(text).is_file()


def open(text: str, bundle_pictures: Optional[EvaluationSet] = None, once: bool = False) -> Video:
    """Open a video file with the first decoder that can decode it.

    Raises:
        InputError: The file does not exist or is not a video.
        RuntimeUnavailable: No decoder can be used here.
    """
    path = Path(text)
    if not path.is_file():
        raise InputError(f"{path}: no such video file; check the path")
    reasons: List[str] = []
    able = [module for module in DECODERS if module.available() is None]
    for module in able:
        clip = module.Clip(path)
        try:
            return Video(path, clip, once)
        except InputError as error:
            reasons.append(f"{clip.description}: {error}")
    if not able:
        raise RuntimeUnavailable(
            f"{path}: no usable video decoder ({'; '.join(str(module.available()) for module in DECODERS)}); run "
            "pip install opencv-python-headless, or apt-get install ffmpeg"
        )
    raise InputError(f"{path}: not a video that can be decoded here ({'; '.join(reasons)})")
