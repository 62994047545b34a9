"""Images: a folder, a glob or one file, in the order of their names, repeatedly or once.

If they fit into memory, their bytes are read beforehand, so that only decoding is measured and not the disk.
"""

from __future__ import annotations

import glob
import io
import itertools
from collections import Counter
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from edgeprune_device.errors import InputError, reason
from edgeprune_device.files import check_file
from edgeprune_device.sources.source import Frame, Source
from edgeprune_device.vision import preprocess
from edgeprune_device.vision.evaluation import EvaluationSet

__all__ = ["Pictures", "open", "takes"]

MAX_MEMORY_BYTES = 10**9
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

Data = Union[bytes, Path]


class Pictures(Source):
    """Images, given by their names and bytes or paths: Pictures("pictures", "pictures in /a", [("/a/1.jpg", b"…")]).

    Args:
        name: Kind of the source.
        what: Text for the description.
        pictures: (name, bytes or path) of each image.
        once: End after the last image instead of starting again.

    Raises:
        InputError: A file is not an image, or exceeds the decoding limit.
    """

    def __init__(self, name: str, what: str, pictures: Sequence[Tuple[str, Data]], once: bool = False):
        formats = Counter(_format(*picture) for picture in pictures)
        listed = " and ".join(name for name, _ in formats.most_common())
        on_disk = isinstance(pictures[0][1], Path)
        where = "read frame by frame" if on_disk else "in memory"
        count = f"{len(pictures)} file{'s' if len(pictures) > 1 else ''}"
        self.name = name
        self.description = f"{what} ({count}, {listed}, {where})"
        if on_disk:
            self._warnings = (
                f"the images are larger than {MAX_MEMORY_BYTES / 1e9:g} GB and are read frame by frame, so the stage "
                "decode includes the time of the disk",
            )
        # Created once: creating a frame for each turn would cost time between the measured frames.
        self._frames, self._once = tuple(Frame(name, data, 0) for name, data in pictures), once

    def frames(self) -> Iterator[Frame]:
        """All images; then all of them again, except with `once`."""
        return iter(self._frames) if self._once else itertools.cycle(self._frames)

    def decode(self, frame: Frame) -> np.ndarray:
        """Upright RGB, as Ultralytics reads a labelled image."""
        return preprocess.decode(frame.data, frame.name)


def takes(text: str) -> bool:
    """Whether the text is a folder, an image file by its suffix, or a glob."""
    path = Path(text)
    return path.is_dir() or (path.suffix.lower() in _SUFFIXES if path.exists() else glob.has_magic(text))


def open(text: str, bundle_pictures: Optional[EvaluationSet] = None, once: bool = False) -> Pictures:
    """Open a folder, a glob or a file of images.

    Raises:
        InputError: No images were found, or a file is not an image.
    """
    path = Path(text)
    if path.is_dir():
        what, files = f"images in {path}", _in_folder(path)
    elif path.exists():
        what, files = f"image {path}", [path]
    else:
        what, files = f"images {text}", sorted(Path(name) for name in glob.glob(text, recursive=True))
        files = [file for file in files if file.is_file()]
        if not files:
            raise InputError(f"{text}: no such file, folder or matching file name; check the path")
    for file in files:
        check_file(file)
    try:
        keep = sum(file.stat().st_size for file in files) <= MAX_MEMORY_BYTES
        pictures = [(str(file), file.read_bytes() if keep else file) for file in files]
        return Pictures("pictures", what, pictures, once)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({reason(error)})") from error


def _in_folder(folder: Path) -> List[Path]:
    try:
        # Hidden files are not images, whatever their suffix: macOS creates "._a.jpg" beside a.jpg.
        files = [file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES and file.name[0] != "."]
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({reason(error)})") from error
    if not files:
        raise InputError(f"{folder}: no image in this folder; to include subfolders, give '{folder}/**/*.jpg'")
    return sorted(files)


def _format(name: str, data: Data) -> str:
    """The format from the file's header, e.g. "JPEG"; a damaged body is detected only by decoding."""
    try:
        with preprocess.opened(io.BytesIO(data) if isinstance(data, bytes) else data, name) as image:
            return str(image.format)
    except InputError:
        raise
    except Exception as error:  # a damaged file makes Pillow's plug-ins raise almost anything
        empty = not (len(data) if isinstance(data, bytes) else data.stat().st_size)
        wrong = "the file is empty" if empty else "not an image that can be decoded"
        raise InputError(f"{name}: {wrong}; remove the file, or give other images") from error
