"""Scales images to fit into a page, all with the same size and quality: the best that fits."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from edgeprune_device.errors import InputError
from edgeprune_device.vision import preprocess
from PIL import Image

#: (longest side px, JPEG quality), the best first.
_LADDER = ((960, 84), (960, 76), (800, 74), (640, 72), (512, 68), (400, 62))


@dataclass(frozen=True)
class GalleryImage:
    """An image of the gallery, upright, and no larger than the first step of the ladder.

    Attributes:
        pixels: the image; None if it cannot be read.
        size: (width, height) of the file, px.
        error: reason why it cannot be read.
    """

    pixels: Image.Image | None
    size: tuple[int, int] = (0, 0)
    error: str | None = None


def read(path: str) -> GalleryImage:
    """Read an image; a missing or damaged one becomes a GalleryImage with an error."""
    try:
        image = Image.fromarray(preprocess.decode(Path(path), Path(path).name))
    except InputError as error:
        return GalleryImage(None, error=str(error))
    except ValueError as error:  # a path with a NUL
        return GalleryImage(None, error=f"cannot be read ({error})")
    size = image.size
    image.thumbnail((_LADDER[0][0], _LADDER[0][0]), Image.Resampling.LANCZOS)
    return GalleryImage(image, size)


def encode(pixels: Image.Image, step: int) -> str:
    """Encode an image as a data: URL, at one step of the ladder."""
    side, quality = _LADDER[step]
    image = pixels.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, optimize=True, progressive=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def fit(pictures: list[GalleryImage], around: list[int], budget: int) -> tuple[list[str | None], int]:
    """Encode as many images as fit into the budget, starting with the first.

    All use the best step of the ladder at which all of them fit. If they do not fit at the last step, the last images
    are left out.

    Args:
        pictures: the images.
        around: bytes of markup around each image.
        budget: limit of images and markup together, bytes.

    Returns:
        The data: URLs, None for an image that could not be read, and the limit of their longest side, px.
    """
    for step, (side, _) in enumerate(_LADDER):
        urls: list[str | None] = []
        left = budget
        for picture, markup in zip(pictures, around):
            url = encode(picture.pixels, step) if picture.pixels is not None else None
            left -= markup + len(url or "")
            if left < 0:
                break
            urls.append(url)
        if len(urls) == len(pictures) or step == len(_LADDER) - 1:
            return urls, side
    raise AssertionError("the ladder has steps")
