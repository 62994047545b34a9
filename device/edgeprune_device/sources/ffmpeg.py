"""Decodes video with the programs ffmpeg and ffprobe into RGB, as PPM images that each state their size."""

from __future__ import annotations

import re
import shutil
import subprocess
from io import BufferedIOBase
from pathlib import Path
from typing import Iterator, List, Optional

import numpy as np

from edgeprune_device import strict_json
from edgeprune_device.errors import EdgepruneError, InputError
from edgeprune_device.sources.program import OUTPUT_FD, Program
from edgeprune_device.sources.y4m import read_into
from edgeprune_device.vision import preprocess

__all__ = ["Clip", "available", "pictures"]

_PROBE_S = 60
_FPS = ("-select_streams", "v:0", "-show_entries", "stream=avg_frame_rate", "-of", "json")


def available() -> Optional[str]:
    """None if both programs are on PATH, else the reason."""
    missing = [name for name in ("ffmpeg", "ffprobe") if not shutil.which(name)]
    return f"{missing[0]} is not installed" if missing else None


class Clip:
    """One video file; each call of `images()` starts from the beginning.

    Args:
        path: The file.

    Attributes:
        description: Name and version of the decoder.
        fps: Frames/s, None if not known.
    """

    def __init__(self, path: Path):
        self._url = f"file:{path}"  # without "file:", "a:b.mp4" would be a protocol, and "-a.mp4" an option
        first = _output(["ffmpeg", "-version"]).split("\n")[0]
        version = re.match(r"ffmpeg version n?(\d+)(\.\d+)?", first)
        self.description = f"ffmpeg {version[1]}{version[2] or ''}" if version else "ffmpeg"
        # Every frame of the file once, as with OpenCV; ffmpeg must not repeat frames to keep a frame rate. The option
        # was renamed in 5.1; a build without a version is newer.
        self._all = ["-vsync", "0"] if version and int(version[1]) < 6 else ["-fps_mode", "passthrough"]
        self.fps = _fps(_output(["ffprobe", "-v", "error", *_FPS, self._url]))
        self._program = Program()

    def images(self) -> Iterator[np.ndarray]:
        """The frames from first to last, RGB.

        Raises:
            InputError: The file is not a video, cannot be decoded, or is cut off.
        """
        with self._program.run(self._command()) as stream:
            yield from pictures(stream)
            if self._program.code() != 0:
                raise InputError(self._program.words().replace(f"{self._url}: ", ""))

    def close(self) -> None:
        """Kill ffmpeg."""
        self._program.close()

    def _command(self) -> List[str]:
        quiet = ["ffmpeg", "-nostdin", "-v", "error"]
        ppm = ["-map", "0:v:0", *self._all, "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24"]
        return [*quiet, "-i", self._url, *ppm, f"pipe:{OUTPUT_FD}"]


def pictures(stream: BufferedIOBase) -> Iterator[np.ndarray]:
    """The PPM images of a stream, (h, w, 3) uint8; ends with the stream, or at bytes that are not a PPM image.

    Raises:
        InputError: An image exceeds the decoding limit.
    """
    while stream.readline(100) == b"P6\n":
        width, height = (int(number) for number in stream.readline(100).split())
        stream.readline(100)  # 255
        preprocess.check_size(width, height, "its frame")
        image = np.empty((height, width, 3), np.uint8)
        if not read_into(stream, image):
            return
        yield image


def _output(command: List[str]) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_PROBE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")


def _fps(text: str) -> Optional[float]:
    """ffprobe's answer -> frames/s: '{"streams": [{"avg_frame_rate": "30000/1001"}]}' -> 29.97."""
    try:
        over, under = strict_json.loads(text.encode("utf-8"), "ffprobe")["streams"][0]["avg_frame_rate"].split("/")
        fps = int(over) / int(under)
    except (EdgepruneError, LookupError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        return None
    return fps if fps > 0 else None
