"""Video by OpenCV, which has FFmpeg's decoders inside it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional

import numpy as np

from edgeprune_device.errors import InputError
from edgeprune_device.vision import preprocess

__all__ = ["Clip", "available"]


def available() -> Optional[str]:
    """None where OpenCV is installed, else the reason."""
    return None if preprocess.uses_opencv() else "OpenCV is not installed"


class Clip:
    """One video file; `images()` starts it again.

    Args:
        path: The file.

    Attributes:
        description: Name and version of the decoder.
        fps: Frames a second, None where not known.
    """

    def __init__(self, path: Path):
        import cv2

        self.description = f"OpenCV {cv2.__version__}"
        self.fps: Optional[float] = None
        self._path = path

    def images(self) -> Iterator[np.ndarray]:
        """The frames, RGB, once through.

        Raises:
            InputError: The file is no video or cannot be decoded.
        """
        import cv2

        with _quietly(cv2):
            # FFmpeg by name: OpenCV would also try the file as a sequence of images, and as a GStreamer pipeline. The
            # whole path: FFmpeg takes the begin of "a:b.mp4" for a protocol.
            capture = cv2.VideoCapture(os.path.abspath(str(self._path)), cv2.CAP_FFMPEG)
        try:
            if not capture.isOpened():
                raise InputError("cannot open it")
            fps = capture.get(cv2.CAP_PROP_FPS)
            self.fps = fps if 0 < fps < 1e4 else None
            while True:
                there, image = capture.read()
                if not there:
                    return
                yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        finally:
            capture.release()

    def close(self) -> None:
        """Do nothing: no decoder runs outside of `images`."""


@contextmanager
def _quietly(cv2) -> Iterator[None]:
    """Silence OpenCV's messages; our own error is one line."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's AV_LOG_QUIET; read at the first file
    log = getattr(getattr(cv2, "utils", None), "logging", None)  # older ones have none
    before = log.setLogLevel(log.LOG_LEVEL_ERROR) if log else None
    try:
        yield
    finally:
        if log:
            log.setLogLevel(before)
