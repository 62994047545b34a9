r"""YUV4MPEG2, a raw video stream with its own size and pace, that carries RGB: planes G, B, R as Y, U, V.

GStreamer writes it with its base and "good" plug-ins alone; PNM, which has a name for RGB, needs the "bad" ones. The
stream carries RGB because GStreamer knows which of the many kinds of YUV a source gives, and converts it in C.

    YUV4MPEG2 C444 W1280 H720 Ip F30:1 A1:1\n    then for each frame: FRAME\n and three planes
"""

from __future__ import annotations

from typing import BinaryIO, Iterator, Optional

import numpy as np

from edgeprune_device.errors import DeviceError
from edgeprune_device.vision import preprocess

__all__ = ["Stream", "read_into", "rgb"]

_SIDES_PX = (16, 16384)
_MARK = b"FRAME\n"


class Stream:
    """The frames of a stream, (3, h, w) uint8 planes for `rgb`.

    Args:
        stream: The stream.
        what: Name of the stream in messages.

    Attributes:
        width: Width, px.
        height: Height, px.
        fps: Frames a second, None where not known.

    Raises:
        EOFError: The stream ended before its header.
        DeviceError: It is another kind of stream.
    """

    def __init__(self, stream: BinaryIO, what: str):
        line = stream.readline(1000)
        if not line:
            raise EOFError
        self._stream = stream
        try:
            kind, *tags = line.decode("ascii").split()
            said = {tag[0]: tag[1:] for tag in tags if kind == "YUV4MPEG2"}
            self.width, self.height = int(said["W"]), int(said["H"])
            over, under = (int(number) for number in said.get("F", "0:1").split(":"))
        except (KeyError, ValueError) as error:
            raise DeviceError(f"{what}: not a Y4M stream: it begins with {line[:60]!r}") from error
        if said.get("C") != "444":
            raise DeviceError(f"{what}: a Y4M stream with colours as C{said.get('C', '420')}, where C444 was asked for")
        if not all(_SIDES_PX[0] <= side <= _SIDES_PX[1] for side in (self.width, self.height)):
            limits = f"{_SIDES_PX[0]} to {_SIDES_PX[1]}"
            raise DeviceError(f"{what}: frames of {self.width}x{self.height} px; a side may have {limits}")
        self.fps: Optional[float] = over / under if over > 0 and under > 0 else None

    def __iter__(self) -> Iterator[np.ndarray]:
        plain = 3 * self.height * self.width
        padded = 3 * self.height * (-(-self.width // 4) * 4)
        size, marked = (plain if plain == padded else 0), False
        while marked or self._stream.readline(1000).startswith(_MARK[:-1]):
            marked = False
            frame = np.empty(size or padded, np.uint8)
            if size:
                whole = read_into(self._stream, frame)
            else:
                # GStreamer leaves the padding of its rows in the stream (seen in 1.22), which the format does not have.
                # The first frame's end tells which it is: there the next one's mark stands.
                whole = read_into(self._stream, frame[:plain])
                ahead = self._stream.read(len(_MARK))
                marked = ahead == _MARK
                if marked or not ahead:
                    size, frame = plain, frame[:plain]
                else:
                    size = padded
                    frame[plain : plain + len(ahead)] = np.frombuffer(ahead, np.uint8)
                    whole = whole and read_into(self._stream, frame[plain + len(ahead) :])
            if not whole:
                return
            yield frame.reshape(3, self.height, -1)[:, :, : self.width]


def read_into(stream: BinaryIO, array: np.ndarray) -> bool:
    """Fill the array; False when the stream ended before."""
    return stream.readinto(memoryview(array).cast("B")) == array.nbytes


def rgb(planes: np.ndarray) -> np.ndarray:
    """A frame of a `Stream` -> (h, w, 3) uint8 RGB."""
    green, blue, red = planes
    if preprocess.uses_opencv():
        import cv2

        return cv2.merge([red, green, blue])
    return np.stack([red, green, blue], axis=-1)
