r"""YUV4MPEG2, a raw video stream that states its size and frame rate, here with RGB: planes G, B, R as Y, U, V.

GStreamer writes it with only its base and "good" plug-ins; PNM, which has a name for RGB, needs the "bad" ones. The
stream carries RGB because GStreamer knows which of the many kinds of YUV a source gives, and converts it in C.

    YUV4MPEG2 C444 W1280 H720 Ip F30:1 A1:1\n    then for each frame: FRAME\n and three planes
"""

from __future__ import annotations

from io import BufferedIOBase
from typing import Iterator, Optional

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
        fps: Frames/s, None if not known.

    Raises:
        EOFError: The stream ended before its header.
        DeviceError: The stream is of another kind.
        InputError: Its frames exceed the decoding limit.
    """

    def __init__(self, stream: BufferedIOBase, what: str):
        line = stream.readline(1000)
        if not line:
            raise EOFError
        self._stream = stream
        try:
            kind, *tags = line.decode("ascii").split()
            header = {tag[0]: tag[1:] for tag in tags if kind == "YUV4MPEG2"}
            self.width, self.height = int(header["W"]), int(header["H"])
            over, under = (int(number) for number in header.get("F", "0:1").split(":"))
        except (KeyError, ValueError) as error:
            raise DeviceError(f"{what}: not a Y4M stream (found {line[:60]!r})") from error
        if header.get("C") != "444":
            colours = header.get("C", "420")
            raise DeviceError(f"{what}: wrong colour format of the Y4M stream (found C{colours}, expected C444)")
        if not all(_SIDES_PX[0] <= side <= _SIDES_PX[1] for side in (self.width, self.height)):
            limits = f"{_SIDES_PX[0]} to {_SIDES_PX[1]}"
            raise DeviceError(
                f"{what}: invalid frame size (found {self.width}x{self.height} px, expected {limits} per side)"
            )
        preprocess.check_size(self.width, self.height, what)
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
                # GStreamer 1.22 leaves the padding of its rows in the stream, which the format does not have. After the
                # first frame, the position of the next frame's mark shows whether rows are padded.
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


def read_into(stream: BufferedIOBase, array: np.ndarray) -> bool:
    """Fill the array; return False if the stream ended before."""
    return stream.readinto(array.data.cast("B")) == array.nbytes


def rgb(planes: np.ndarray) -> np.ndarray:
    """A frame of a `Stream` -> (h, w, 3) uint8 RGB."""
    green, blue, red = planes
    if preprocess.uses_opencv():
        import cv2

        image: np.ndarray = cv2.merge([red, green, blue])
        return image
    return np.stack([red, green, blue], axis=-1)
