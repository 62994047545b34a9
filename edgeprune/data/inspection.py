"""Inspects images in parallel processes: each image is decoded once. Its size, its hash and the reason why it is
unusable, if any, are cached (memory.py).

An image is unusable if Pillow (which decodes for pruning, calibration and evaluation) or OpenCV (for training) cannot
decode it, or if Ultralytics excludes it from training. A JPEG is decoded at an eighth of its size, which reads
every byte and finds the same damage in a third of the time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import PIL
from edgeprune_device.errors import InputError, reason
from edgeprune_device.progress import Progress, silent
from edgeprune_device.vision import preprocess
from PIL import Image

from edgeprune import workers
from edgeprune.data import memory

__all__ = ["Look", "inspect", "upright_shape"]

#: Ultralytics excludes smaller images from training, px.
LEAST_SIDE = 10
#: The formats that both decoders read and Ultralytics trains on.
_TRAINED = ("BMP", "JPEG", "MPO", "PNG", "TIFF", "WEBP")
#: Part of the cache key; increase it when the inspection changes its result for the same file.
_VERSION = "1"
#: Images per task of a worker.
_SHARE = 32
#: Maximum length of `Look.problem`, characters.
_LONGEST = 200
_ORIENTATION = 0x0112  # EXIF tag
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Look:
    """The result of the inspection of one image.

    Example: Look(480, 640, 68903, "9f86d0…", None).

    Attributes:
        height: Height after the EXIF orientation has been applied, px; 0 if unknown.
        width: Width after the EXIF orientation has been applied, px; 0 if unknown.
        size: Size of the file, bytes; 0 if the image was not decoded.
        digest: SHA-256 of the file; empty if the image was not decoded, because it is unreadable or too large.
        problem: Why the image is unusable, in words; None for a usable image and for an image that is too large.
    """

    height: int = 0
    width: int = 0
    size: int = 0
    digest: str = ""
    problem: str | None = None

    @property
    def large(self) -> bool:
        """Whether the image is too large to decode."""
        return not self.digest and self.problem is None


def inspect(pictures: Sequence[Path], progress: Progress = silent) -> dict[Path, Look]:
    """Inspect images; those that are not in the cache are decoded in parallel.

    Args:
        pictures: The images; links to the same file count as one image.
        progress: Receives the fraction done and a line of text.

    Returns:
        {image: its Look}.
    """
    files = {picture: _status(picture) for picture in pictures}
    paths = {_number(status): picture for picture, status in files.items() if status}
    keys = {_number(status): _key(status) for status in files.values() if status}
    facts = memory.recall(key for key in keys.values() if key)
    looks = {number: look for number, key in keys.items() if key in facts and (look := _remembered(facts[key]))}
    fresh = [number for number in paths if number not in looks]
    shares = [fresh[start : start + _SHARE] for start in range(0, len(fresh), _SHARE)]
    learned: dict[bytes, bytes] = {}
    done = 0
    try:
        for share, seen in zip(shares, workers.ordered(lambda share: [_look(paths[n]) for n in share], shares)):
            for number, look in zip(share, seen):
                looks[number], key = look, keys[number]
                if key and look.digest:  # an unreadable file may become readable
                    learned[key] = json.dumps(astuple(look)).encode()
            done += len(share)
            progress(done / len(fresh), f"checking images: {done:,}/{len(fresh):,}")
    finally:  # an interrupted inspection continues here the next time
        memory.keep(learned)
    gone = Look(problem="the image cannot be read (no such file)")
    return {picture: looks[_number(status)] if status else gone for picture, status in files.items()}


def _status(picture: Path) -> os.stat_result | None:
    try:
        return os.stat(picture)
    except OSError:
        return None


def _number(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _key(status: os.stat_result) -> bytes | None:
    return memory.identity(f"image {_VERSION} {PIL.__version__}", status)


def _remembered(fact: bytes) -> Look | None:
    try:
        return Look(*json.loads(fact))
    except (ValueError, TypeError):  # the cache is damaged
        return None


# -- one image ---------------------------------------------------------------------------------------------------------
def upright_shape(picture: Path) -> tuple[int, int]:
    """(height, width) of an image, px, after its EXIF orientation has been applied.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        with preprocess.opened(picture, str(picture)) as image:
            return _upright_shape(image)
    except Exception:  # Pillow's plug-ins raise many kinds of error for a damaged file; decode() raises the one to show
        height, width = preprocess.decode(picture).shape[:2]
        return height, width


def _upright_shape(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    try:
        turned = image.getexif().get(_ORIENTATION, 1) >= 5
    except Exception:  # an image with damaged EXIF data is not rotated
        turned = False
    # Orientations from 5 swap the sides: decode() rotates the image, and the labels refer to the rotated image.
    return (width, height) if turned else (height, width)


def _look(picture: Path) -> Look:
    height = width = 0
    try:
        with preprocess.opened(picture, str(picture)) as image:
            height, width = _upright_shape(image)
            kind = image.format or ""
            sound = kind in ("JPEG", "MPO") and _decodes_small(image)
        problem = _problem(picture, kind, (height, width), sound)
    except InputError:
        return Look(height, width)
    except MemoryError:
        return Look(height, width, problem="too little memory to decode the image")
    except Exception:  # Pillow's plug-ins raise many kinds of error for a damaged file
        problem = _undecoded(picture) or "unknown image format"
    try:
        return Look(height, width, *_content(picture), problem and problem[:_LONGEST])
    except OSError as error:
        return Look(height, width, problem=f"the image cannot be read ({reason(error)})")


def _content(picture: Path) -> tuple[int, str]:
    """(size, SHA-256) of the file."""
    size, digest = 0, hashlib.sha256()
    with open(picture, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _decodes_small(image: Image.Image) -> bool:
    try:
        image.draft("L", (max(image.width // 8, 1), max(image.height // 8, 1)))
        image.load()
    except Exception:
        return False
    return True


def _problem(picture: Path, kind: str, shape: tuple[int, int], sound: bool) -> str | None:
    problem = None if sound else _undecoded(picture)
    if problem:
        return problem
    if min(shape) < LEAST_SIDE:
        return f"too small for training (found {shape[1]}x{shape[0]} px, expected at least {LEAST_SIDE} px per side)"
    if kind not in _TRAINED:
        return f"format {kind}, which Ultralytics does not train on"
    return None if sound else _refused_by_the_training(picture)


def _undecoded(picture: Path) -> str | None:
    """The reason why Pillow cannot decode the image; None if it can."""
    try:
        preprocess.decode(picture)
    except InputError as error:
        return str(error).removeprefix(f"{picture}: ").split("; ")[0]
    return None


def _refused_by_the_training(picture: Path) -> str | None:
    """The reason why Ultralytics or OpenCV refuses an image that Pillow decodes, such as a truncated PNG; None if both
    accept it.
    """
    import cv2

    try:
        with preprocess.opened(picture, str(picture)) as image:
            image.verify()
    except Exception as error:
        return f"damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    content = np.fromfile(picture, np.uint8)
    try:
        if cv2.imdecode(content, cv2.IMREAD_COLOR) is not None or cv2.imdecodemulti(content, cv2.IMREAD_UNCHANGED)[0]:
            return None
    except cv2.error:
        pass
    return "OpenCV, which decodes images for training, cannot decode it"
