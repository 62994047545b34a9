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
    """None where OpenCV is installed."""
    return None if preprocess.uses_opencv() else "OpenCV is not installed"


class Clip:
    """One file; `images()` begins it anew."""

    def __init__(self, path: Path):
        import cv2

        self.description = f"OpenCV {cv2.__version__}"
        self.fps: Optional[float] = None
        self._path = path

    def images(self) -> Iterator[np.ndarray]:
        """RGB, once through. InputError: no video, or none that it can decode."""
        import cv2

        with _quietly(cv2):
            # FFmpeg by name: OpenCV would also try the file as a sequence of pictures, and as a GStreamer pipeline. The
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
        """Nothing runs outside of `images`."""


@contextmanager
def _quietly(cv2) -> Iterator[None]:
    """What it cannot open is told by us, in one line."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's AV_LOG_QUIET; read at the first file
    log = getattr(getattr(cv2, "utils", None), "logging", None)  # older ones have none
    before = log.setLogLevel(log.LOG_LEVEL_ERROR) if log else None
    try:
        yield
    finally:
        if log:
            log.setLogLevel(before)
