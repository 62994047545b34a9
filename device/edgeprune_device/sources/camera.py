"""A live camera: only the newest frame is kept, and the dropped ones are counted.

GStreamer gives frames as planes of red, green and blue, from which `decode` makes an image. It was tested with
GStreamer's own live test source. No camera was available: neither Video4Linux (/dev/video0) nor a Jetson's own camera
(csi) is verified.
"""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path
from typing import Callable, Generator, List, Optional

import numpy as np

from edgeprune_device.errors import DeviceError, InputError, RuntimeUnavailable
from edgeprune_device.sources import gstreamer, y4m
from edgeprune_device.sources.program import Program
from edgeprune_device.sources.reader import Reader
from edgeprune_device.sources.source import Frame, Source
from edgeprune_device.vision.evaluation import EvaluationSet

__all__ = ["Camera", "elements", "open", "takes"]

_START_S = 30.0  # until the first frame; the image processor of a Jetson needs seconds to stabilise
_CSI = re.compile(r"csi(?::(\d+))?")
_DEVICE = re.compile(r"/dev/(video\d+|v4l/\S+)")


class Camera(Source):
    """A camera; the constructor waits for the first frame.

    Args:
        text: Text of the camera, see `elements`.

    Raises:
        DeviceError: No frame arrived; the message includes GStreamer's.
        InputError: The pipeline is invalid.
    """

    name = "camera"
    live = True

    def __init__(self, text: str):
        self._text = text
        self._program = Program(gstreamer.FATAL)
        self._reader = Reader(self._frames(gstreamer.command(elements(text))), capacity=1, newest=True)
        try:
            _, height, width = self._wait(self._reader.peek, _START_S).data.shape
        except BaseException:
            self.close()
            raise
        pace = f"{self.fps:.4g} fps" if self.fps else "unknown fps"
        self.description = f"camera {_without_secrets(text)}, {width}x{height}, {pace}, by GStreamer"

    @property
    def arrived(self) -> int:
        """Number of frames that arrived."""
        return self._reader.arrived

    @property
    def dropped(self) -> int:
        """Number of frames that a newer one replaced before they were taken."""
        return self._reader.dropped

    def next(self, timeout_s: float) -> Frame:
        """The newest frame.

        Raises:
            DeviceError: The camera has ended, or gives no frame for `timeout_s`.
        """
        return self._wait(self._reader.take, timeout_s)

    def decode(self, frame: Frame) -> np.ndarray:
        """Planes to RGB."""
        return y4m.rgb(frame.data)

    def close(self) -> None:
        """End GStreamer."""
        self._program.close()
        self._reader.close()

    def _wait(self, how: Callable[[float], Frame], timeout_s: float) -> Frame:
        try:
            return how(timeout_s)
        except TimeoutError:
            raise DeviceError(
                f"{self._text}: no frame from the camera for {timeout_s:g} s (GStreamer: {self._program.words()}); "
                "check that the camera is plugged in and that no other program uses it"
            ) from None

    def _frames(self, command: List[str]) -> Generator[Frame, None, None]:
        number = 0
        with self._program.run(command) as stream:
            try:
                frames = y4m.Stream(stream, self._text)
                self.fps = frames.fps
                for data in frames:
                    yield Frame(f"camera frame {number}", data, time.monotonic_ns())
                    number += 1
            except EOFError:
                pass
            self._program.code()
            raise _ended(self._text, number, self._program.words())


def elements(text: str) -> List[List[str]]:
    """The GStreamer pipeline of a camera's text: [["v4l2src", "device=/dev/video0"], ["decodebin"]].

    Raises:
        InputError: The camera does not exist, or the text is not a pipeline.
    """
    csi = _CSI.fullmatch(text)
    if csi:
        # NVIDIA's elements; nvvidconv copies frames from the image processor's memory to main memory, in RGB.
        return [
            ["nvarguscamerasrc", f"sensor-id={csi[1] or 0}"],
            ["video/x-raw(memory:NVMM),format=NV12"],
            ["nvvidconv"],
            ["video/x-raw,format=RGBA"],
        ]
    if _DEVICE.fullmatch(text):
        if not Path(text).exists():
            devices = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*")))
            raise InputError(f"{text}: no such camera (found {devices or 'none at /dev/video*'})")
        return [["v4l2src", f"device={text}"], ["decodebin"]]  # decodebin: many cameras give JPEG, others raw video
    try:
        words = shlex.split(text)  # quotes as in a shell, but no shell runs
    except ValueError as error:
        raise InputError(f"{text}: invalid GStreamer pipeline ({str(error).lower()})") from error
    chain: List[List[str]] = [[]]
    for word in words:
        if word == "!":
            chain.append([])
        else:
            chain[-1].append(word)
    if chain[-1][:1] == ["appsink"]:  # a pipeline in OpenCV's form
        chain.pop()
    if not chain or not all(chain):
        raise InputError(f"{text}: invalid GStreamer pipeline (an element is missing beside a '!')")
    return chain


def _without_secrets(text: str) -> str:
    """Remove passwords: the pipeline of a network camera may contain one, and other people read a report."""
    text = re.sub(r"://[^/@\s]*@", "://...@", text)
    words = "user-id|pw|password|passwd|passphrase|token|secret"
    return re.sub(rf"(?i)\b((?:{words})=)(?:'[^']*'|\"[^\"]*\"|\S+)", r"\1...", text)


def takes(text: str) -> bool:
    """Whether the text is csi, csi:N, /dev/video*, /dev/v4l/…, or contains " ! "."""
    return bool(" ! " in text or _CSI.fullmatch(text) or _DEVICE.fullmatch(text))


def open(text: str, bundle_pictures: Optional[EvaluationSet] = None, once: bool = False) -> Camera:
    """Open a camera; see `Camera`.

    Raises:
        RuntimeUnavailable: GStreamer is missing.
    """
    missing = gstreamer.available()
    if missing:
        raise RuntimeUnavailable(
            f"{text}: {missing}; apt-get install gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
        )
    return Camera(text)


def _ended(text: str, frames: int, words: str) -> Exception:
    """The error for a pipeline that has ended."""
    if 'no element "y4menc"' in words:
        return RuntimeUnavailable(f"{text}: GStreamer has no y4menc; apt-get install gstreamer1.0-plugins-good")
    if "erroneous pipeline" in words:
        return InputError(f"{text}: invalid GStreamer pipeline ({words})")
    after = f"ended after {frames} frames" if frames else "gave no frame"
    return DeviceError(f"{text}: the camera {after} (GStreamer: {words})")
