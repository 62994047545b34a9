"""The layout of a detector's input as stated by the file and the manifest; it is never guessed.

The module does not need numpy before an input is made, because the manifest uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence, Tuple

if TYPE_CHECKING:
    import numpy as np

__all__ = ["FLOAT32_NCHW", "UINT8_NHWC", "noise", "shape_of"]

#: (1, 3, h, w) float32, RGB in 0..1, as Ultralytics exports it.
FLOAT32_NCHW = "float32-nchw"
#: (1, h, w, 3) uint8, RGB in 0..255, as images are in memory. The file scales the values and moves the channels.
UINT8_NHWC = "uint8-nhwc"


def shape_of(layout: str, size: Sequence[int]) -> Tuple[int, int, int, int]:
    """The shape of an input.

    Args:
        layout: `FLOAT32_NCHW` or `UINT8_NHWC`.
        size: (height, width), px.
    """
    height, width = size
    return (1, height, width, 3) if layout == UINT8_NHWC else (1, 3, height, width)


def noise(layout: str, size: Sequence[int]) -> np.ndarray[Any, Any]:
    """An input of random pixels, always the same.

    Args:
        layout: `FLOAT32_NCHW` or `UINT8_NHWC`.
        size: (height, width), px.
    """
    import numpy as np

    pixels = np.random.default_rng(0).integers(256, size=shape_of(layout, size), dtype=np.uint8)
    return pixels if layout == UINT8_NHWC else pixels / np.float32(255)
