"""A video file, repeatedly or once: by OpenCV where it opens the file, else by ffmpeg, else by GStreamer.

A thread decodes a few frames ahead. So the stage "decode" is the time to get the next frame in RGB: almost zero where
the decoder is faster than the other stages, and the decoder's own pace where it is not.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

import numpy as np

from edgeprune_device.errors import DeviceError, InputError, RuntimeUnavailable
from edgeprune_device.sources import ffmpeg, gstreamer, opencv
from edgeprune_device.sources.reader import Reader
from edgeprune_device.sources.source import Frame, Source
from edgeprune_device.vision.evaluation import EvaluationSet

__all__ = ["DECODERS", "Video", "open", "takes"]

DECODERS = (opencv, ffmpeg, gstreamer)  # each with `available()` and `Clip(path)`
_AHEAD = 4  # frames; 25 MB at 1920x1080
_TIMEOUT_S = 30.0  # far above the time that a decoder needs to start on a busy board


class Video(Source):
    """A clip of one of the decoders.

    Args:
        path: The file.
        clip: The decoder's clip.
        once: End after the last frame instead of starting again.

    Raises:
        InputError: The decoder cannot decode it.
        DeviceError: The decoder gives no frame in time.
    """

    name = "video"
    streamed = True

    def __init__(self, path: Path, clip, once: bool = False):
        self._path, self._clip, self._once = path, clip, once
        self._taken: Tuple[int, Optional[np.ndarray]] = (-1, None)
        self._reader = Reader(self._images(), _AHEAD)
        try:
            _, first = self._take(self._reader.peek)
        except BaseException:
            self.close()
            raise
        self.fps = clip.fps
        pace = f"{self.fps:.4g} fps" if self.fps else "its fps unknown"
        size = f"{first.shape[1]}x{first.shape[0]}"
        self.description = f"video {path}, {size}, {pace}, by {clip.description}, decoded ahead by a thread"

    def frames(self) -> Iterator[Frame]:
        """Numbers of frames; `decode` has the image. After the last frame the first comes again."""
        return (Frame(f"{self._path} frame {number}", number, 0) for number in itertools.count())

    def decode(self, frame: Frame) -> np.ndarray:
        """Wait for a frame; those before it are left out.

        Raises:
            InputError: The video breaks off.
            EOFError: The video has ended, with `once`.
        """
        while self._taken[0] < frame.data:
            self._taken = self._take(self._reader.take)
        return self._taken[1]

    def close(self) -> None:
        """End the decoder."""
        self._clip.close()
        self._reader.close()

    def _take(self, how) -> Tuple[int, np.ndarray]:
        try:
            return how(_TIMEOUT_S)
        except TimeoutError:
            raise DeviceError(f"{self._path}: no frame from {self._clip.description} for {_TIMEOUT_S:g} s") from None

    def _images(self) -> Iterator[Tuple[int, np.ndarray]]:
        number = 0
        while True:
            begin = number
            for image in self._clip.images():
                if not self.warnings and number == begin > 0:
                    self.warnings = (f"the video of {number} frames was repeated; its decoder starts anew each time",)
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
    """Open a video file by the first decoder that can decode it.

    Raises:
        InputError: There is no such file, or it is no video.
        RuntimeUnavailable: No decoder is installed.
    """
    path = Path(text)
    if not path.is_file():
        raise InputError(f"{path}: no such video file")
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
            f"{path}: nothing here can decode a video ({'; '.join(str(module.available()) for module in DECODERS)}); "
            "install one: pip install opencv-python-headless, or apt-get install ffmpeg"
        )
    raise InputError(f"{path}: not a video that can be decoded here ({'; '.join(reasons)})")
