"""Pictures small enough to travel in a page: one size and quality for all, the best that fits."""

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
    """A picture of the gallery, upright, no larger than the ladder's first step; or why there is none."""

    image: Image.Image | None
    size: tuple[int, int] | None
    error: str | None = None


def read(path: str | None) -> GalleryImage:
    """The picture at `path`; one that is missing or damaged says so and ends nothing."""
    if not path:
        return GalleryImage(None, None, "its file is not known")
    try:
        image = Image.fromarray(preprocess.decode(Path(path), Path(path).name))
    except InputError as error:
        return GalleryImage(None, None, str(error))
    except ValueError as error:  # a path that no file system takes (a NUL in it)
        return GalleryImage(None, None, f"cannot be read ({error})")
    size = image.size
    image.thumbnail((_LADDER[0][0], _LADDER[0][0]), Image.Resampling.LANCZOS)
    return GalleryImage(image, size)


def encode(picture: GalleryImage, step: int) -> str:
    """A data: URL, at that step of the ladder."""
    side, quality = _LADDER[step]
    image = picture.image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, optimize=True, progressive=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def fit(pictures: list[GalleryImage], around: list[int], budget: int) -> tuple[list[str | None], int]:
    """Data URLs of as many first pictures as fit into `budget` bytes, each with `around` bytes of markup beside it.

    Returns them, None where there is no picture, and the longest side in px that they were scaled to. All of them at
    the best step at which all fit; where not even the last does, as many as do.
    """
    for step, (side, _) in enumerate(_LADDER):
        urls: list[str | None] = []
        left = budget
        for picture, markup in zip(pictures, around):
            url = encode(picture, step) if picture.image is not None else None
            left -= markup + len(url or "")
            if left < 0:
                break
            urls.append(url)
        if len(urls) == len(pictures) or step == len(_LADDER) - 1:
            return urls, side
    raise AssertionError("the ladder has steps")
