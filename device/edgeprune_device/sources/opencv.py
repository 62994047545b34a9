"""Decodes video with OpenCV, which contains FFmpeg's decoders."""

from __future__ import annotations

import os
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Iterator, Optional

import numpy as np

from edgeprune_device.errors import InputError
from edgeprune_device.vision import preprocess

__all__ = ["Clip", "available"]


def available() -> Optional[str]:
    """None if OpenCV is used here, else the reason."""
    if preprocess.uses_opencv():
        return None
    if os.environ.get("EDGEPRUNE_OPENCV") == "0":
        return "OpenCV is disabled (EDGEPRUNE_OPENCV=0)"
    if find_spec("cv2") is None:
        return "OpenCV is not installed"
    return "OpenCV is installed but cannot be imported (python3 -c 'import cv2' shows the error)"


class Clip:
    """One video file; each call of `images()` starts from the beginning.

    Args:
        path: The file.

    Attributes:
        description: Name and version of the decoder.
        fps: Frames/s, None if not known.
    """

    def __init__(self, path: Path):
        import cv2

        self.description = f"OpenCV {cv2.__version__}"
        self.fps: Optional[float] = None
        self._path = path

    def images(self) -> Iterator[np.ndarray]:
        """The frames from first to last, RGB.

        Raises:
            InputError: The file is not a video, cannot be decoded, or its frames exceed the decoding limit.
        """
        import cv2

        with _quietly(cv2):
            # FFmpeg is named, because OpenCV would also try the file as a sequence of images or a GStreamer pipeline.
            # The path is absolute, because FFmpeg takes the beginning of "a:b.mp4" for a protocol.
            capture = cv2.VideoCapture(os.path.abspath(str(self._path)), cv2.CAP_FFMPEG)
        try:
            if not capture.isOpened():
                raise InputError("the file cannot be opened")
            # Checked before the first frame, because OpenCV allocates memory of the size that the file states.
            width, height = (int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
            preprocess.check_size(width, height, "its frame")
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
def _quietly(cv2: ModuleType) -> Iterator[None]:
    """Silence OpenCV's messages; our own error is one line."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's AV_LOG_QUIET; read at the first file
    log = getattr(getattr(cv2, "utils", None), "logging", None)  # missing in old versions
    before = log.setLogLevel(log.LOG_LEVEL_ERROR) if log else None
    try:
        yield
    finally:
        if log:
            log.setLogLevel(before)
