"""Reads frames of a video or a camera's pipeline with the program gst-launch-1.0.

The program is used even if OpenCV contains GStreamer, as on JetPack. A camera that hangs can then be killed, the
behaviour is the same on every machine, and it could be tested.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Iterator, List, Optional, Sequence

import numpy as np

from edgeprune_device.errors import InputError
from edgeprune_device.sources import y4m
from edgeprune_device.sources.program import OUTPUT_FD, Program

__all__ = ["FATAL", "Clip", "available", "command"]

# gst-launch-1.0 prints this before it ends; 1.22 then sometimes hangs (14 of 120 runs on files that are not a video).
FATAL = "ERROR: from"

_PROGRAM = "gst-launch-1.0"
# Converts any raw video for `y4m`. capssetter relabels the planes G, B and R as Y444, a format of the same layout that
# y4menc accepts. YUV would be wrong: videoconvert 1.22 mistakes full range for limited range if nothing else changes.
_TO_Y4M = (["videoconvert"], ["video/x-raw,format=GBR"], ["capssetter", "caps=video/x-raw,format=Y444"], ["y4menc"])


def available() -> Optional[str]:
    """None if the program is on PATH, else the reason."""
    return None if shutil.which(_PROGRAM) else f"{_PROGRAM} is not installed"


def command(elements: Sequence[Sequence[str]]) -> List[str]:
    """The whole command that writes Y4M, for elements that give raw video: [["v4l2src", "device=/dev/video0"], …]."""
    everything = [*elements, *_TO_Y4M, ["fdsink", f"fd={OUTPUT_FD}"]]
    joined = [word for element in everything for word in ("!", *element)][1:]
    return [_PROGRAM, "-q", "--", *joined]


class Clip:
    """One video file; each call of `images()` starts from the beginning.

    Args:
        path: The file.

    Attributes:
        description: Name of the decoder.
        fps: Frames/s, None if not known.
    """

    def __init__(self, path: Path):
        self.description = "GStreamer"
        self.fps: Optional[float] = None
        self._path = path
        self._program = Program(FATAL)

    def images(self) -> Iterator[np.ndarray]:
        """The frames from first to last, RGB.

        Raises:
            InputError: The file is not a video, cannot be decoded, or is cut off.
        """
        # The file is standard input: a path would need quoting by GStreamer's own rules.
        source = [["filesrc", "location=/dev/stdin"], ["decodebin"], ["videoflip", "video-direction=auto"]]
        with self._program.run(command(source), stdin=self._path) as stream:
            try:
                frames = y4m.Stream(stream, str(self._path))
                self.fps = frames.fps
                for frame in frames:
                    yield y4m.rgb(frame)
            except EOFError:
                pass
            if self._program.code() != 0:
                raise InputError(_short(self._program.words()))

    def close(self) -> None:
        """Kill the program."""
        self._program.close()


def _short(words: str) -> str:
    """The message without the long path of the element that printed it."""
    return re.sub(r"^ERROR: from element /\S+: ", "", words)
