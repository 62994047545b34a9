"""Images to network input: decode and letterbox, in numpy and Pillow.

The numbers equal those of Ultralytics' `LetterBox(auto=False)` and `scale_boxes`, without torch. OpenCV resizes if
installed; without it the same fixed-point arithmetic runs in numpy.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO, Callable, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from edgeprune_device import layouts
from edgeprune_device.errors import InputError, reason
from edgeprune_device.option import named
from edgeprune_device.options import MAX_MEGAPIXELS

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "PAD", "STRIDE", "Letterbox", "Preprocessor", "check_size", "decode", "letterbox", "limited", "most_megapixels",
    "opened", "resize_numpy", "uses_opencv",
]  # fmt: skip

#: Grey level of the padding; Ultralytics trains with it.
PAD = 114
#: The sides of a network's input are multiples of this, px.
STRIDE = 32

_STRIP = 64  # image rows at a time in numpy, so that intermediate results stay in the CPU's cache

_GREY = np.float32(PAD) / np.float32(255)

_ORIENTATION = 0x0112  # EXIF tag

_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF")  # no formats for which Pillow calls other programs

_PILLOW_MEGAPIXELS = 178  # Pillow's own limit, twice its MAX_IMAGE_PIXELS
_most_megapixels: int = MAX_MEGAPIXELS.default
# Pillow warns from 89 megapixels on and refuses 179. `check_size` decides here, so the warning is not needed.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@contextmanager
def limited(megapixels: int) -> Iterator[None]:
    """Limit the size of decoded images in every thread while the block runs.

    Args:
        megapixels: The limit (`options.MAX_MEGAPIXELS`).
    """
    global _most_megapixels
    before, _most_megapixels = _most_megapixels, megapixels
    try:
        yield
    finally:
        _most_megapixels = before


def most_megapixels() -> int:
    """The limit of an image that is decoded now, megapixels."""
    return _most_megapixels


def check_size(width: int, height: int, what: str) -> None:
    """Check the size that an image file states against the limit. A few bytes can state any size.

    Args:
        width: Width, px.
        height: Height, px.
        what: Start of the error message.

    Raises:
        InputError: The image has more pixels than the limit.
    """
    if width * height > _most_megapixels * 10**6:
        raise InputError(_too_large(what, f"{width}x{height} px, {width * height / 1e6:.1f} megapixels"))


def _too_large(what: str, size: str) -> str:
    return (
        f"{what}: the image is too large to decode (found {size}, expected at most {_most_megapixels} megapixels); "
        f"scale the image down, remove it, or raise {named('max_megapixels')}"
    )


def decode(source: Union[str, Path, bytes], name: str = "") -> npt.NDArray[np.uint8]:
    """Decode an image as Ultralytics reads labelled images.

    The EXIF orientation is applied, alpha is dropped, grey and palette are expanded, and 16 bits are reduced to their
    high byte.

    Args:
        source: Image file, or its bytes.
        name: Name of the image in messages, if `source` is bytes.

    Returns:
        (h, w, 3) uint8 RGB, C-contiguous.

    Raises:
        InputError: The file cannot be read or decoded, or is larger than the limit; the message names it.
    """
    what = name or (str(source) if not isinstance(source, bytes) else "picture")
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"{what}: the image cannot be read ({reason(error)})") from error
    with stream:
        empty = False
        try:
            empty = stream.seek(0, os.SEEK_END) == 0
            stream.seek(0)
            with opened(stream, what) as image:
                return np.ascontiguousarray(_rgb(_upright(image)))
        except (MemoryError, InputError):
            raise
        except Exception as error:  # a damaged file makes Pillow's plug-ins raise almost anything
            known = not isinstance(error, UnidentifiedImageError)
            problem = (str(error).split("\n")[0] or type(error).__name__) if known else "unknown format"
            wrong = "the file is empty" if empty else f"not an image that can be decoded ({problem})"
            raise InputError(f"{what}: {wrong}; remove the file, or fetch it again") from error


def opened(picture: Union[str, Path, BinaryIO], what: str) -> Image.Image:
    """Open an image with Pillow's `Image.open`, restricted to the formats that are decoded here.

    Ultralytics, if loaded in this process, replaces `Image.open` by a function that runs pip for an unknown file; this
    function avoids that. It raises the same errors as Pillow for a file that is not an image.

    Args:
        picture: Image file, or a stream of it.
        what: Start of the message for an image that is too large.

    Raises:
        InputError: The image has more pixels than the limit.
    """
    patches = sys.modules.get("ultralytics.utils.patches")
    try:
        image: Image.Image = getattr(patches, "_image_open", Image.open)(picture, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise InputError(_too_large(what, f"more than {_PILLOW_MEGAPIXELS} megapixels")) from error
    try:
        check_size(*image.size, what)
    except InputError:
        image.close()
        raise
    return image


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # damaged EXIF must not lose an image; OpenCV also ignores it
        return image


def _rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode == "F" or image.mode.startswith("I"):  # 16-bit grey is "I;16", or "I" in older Pillow
        raw = np.asarray(image)
        if image.mode == "F" or raw.size == 0 or raw.min() < 0 or raw.max() > 0xFFFF:
            raise ValueError(f"unsupported pixel values (found Pillow mode {image.mode}, expected 8 or 16 bits)")
        grey = (raw >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


@dataclass(frozen=True)
class Letterbox:
    """The place of an image in the network's input.

    An example: Letterbox((640, 640), scale=1.0, left=0, top=64, shape=(512, 640)).

    Attributes:
        size: (height, width) of the network input, px.
        scale: Network px per image px, before rounding to whole pixels.
        left: Padding on the left, px.
        top: Padding at the top, px.
        shape: (height, width) of the image, px.
    """

    size: Tuple[int, int]
    scale: float
    left: int
    top: int
    shape: Tuple[int, int]

    @property
    def resized(self) -> Tuple[int, int]:
        """(height, width) of the image inside the network input, whole px."""
        return _resized(self.shape, self.scale)

    def undo(self, dets: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Map detections from network px to image px.

        Args:
            dets: (n, 6+) detections, network px.

        Returns:
            A float32 copy in image px, clipped to the image.
        """
        out = np.array(dets, dtype=np.float32)
        # Each axis has its own gain: rounding to whole pixels makes them differ for thin images.
        for axis, pad in ((1, self.left), (0, self.top)):
            limit, edges = self.shape[axis], out[:, 1 - axis : 4 : 2]
            edges -= pad
            edges /= np.float32(self.resized[axis] / limit)
            np.minimum(np.maximum(edges, 0, out=edges), limit, out=edges)
        return out


def letterbox(
    image: npt.NDArray[np.uint8], size: Union[int, Sequence[int]], layout: str = layouts.FLOAT32_NCHW
) -> Tuple[npt.NDArray[Any], Letterbox]:
    """Resize an image and centre it on a grey background (`PAD`).

    For many images in a row `Preprocessor` is faster.

    Args:
        image: (h, w, 3) uint8 RGB.
        size: Side of a square, or (height, width), px.
        layout: Layout of the input, see layouts.py.

    Returns:
        ((1, 3, height, width) float32 in [0, 1] or (1, height, width, 3) uint8, the letterbox).

    Raises:
        InputError: The image is not (h, w, 3) uint8, or is empty.
    """
    return Preprocessor(size, layout)(image)


class Preprocessor:
    """`letterbox` for many images, with reused memory: `x, box = Preprocessor(640)(image)`.

    `x` keeps its content as long as it or a view of it is referenced; then its memory is reused. The padding is written
    only once, so the caller must not write to `x`. Only one thread at a time may call a Preprocessor; the returned
    arrays may be passed to any thread.

    Args:
        size: Side of a square, or (height, width), px.
        layout: Layout of the input, see layouts.py.
    """

    _MEMORIES = 4  # one being filled and some in use; further arrays get new memory

    def __init__(self, size: Union[int, Sequence[int]], layout: str = layouts.FLOAT32_NCHW):
        height, width = (size, size) if isinstance(size, (int, np.integer)) else (int(size[0]), int(size[1]))
        self.size, self.layout = (int(height), int(width)), layout
        self._memories: List[_Memory] = []
        self._box: Optional[Letterbox] = None  # the letterbox of the next two
        self._small: npt.NDArray[np.uint8] = np.empty(0, dtype=np.uint8)
        self._planes: npt.NDArray[np.uint8] = np.empty(0, dtype=np.uint8)

    def __call__(self, image: npt.NDArray[np.uint8]) -> Tuple[npt.NDArray[Any], Letterbox]:
        """Letterbox one image; see `letterbox`."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise InputError(f"letterbox: not an image (found {image.shape} {image.dtype}, expected (h, w, 3) uint8)")
        box = _place((int(image.shape[0]), int(image.shape[1])), self.size)
        h, w = box.resized
        x = self._memory().array(box)
        rows, columns = slice(box.top, box.top + h), slice(box.left, box.left + w)
        if self.layout == layouts.UINT8_NHWC:
            inside = x[0, rows, columns]
            small = _resize(image, h, w, inside)
            if not np.may_share_memory(small, inside):  # OpenCV did not resize
                _copy(small, inside)
            return x, box
        if box != self._box:
            self._box = box
            self._small, self._planes = np.empty((h, w, 3), dtype=np.uint8), np.empty((3, h, w), dtype=np.uint8)
        _normalise(_resize(image, h, w, self._small), x[0, :, rows, columns], self._planes)
        return x, box

    def _memory(self) -> _Memory:
        for memory in self._memories:
            if memory.free:
                return memory
        memory = _Memory(self.size, self.layout)
        if len(self._memories) < self._MEMORIES:
            self._memories.append(memory)
        return memory


class _Memory:
    """Memory for one input of the network, and whether that array is still referenced."""

    def __init__(self, size: Tuple[int, int], layout: str):
        pixels = layout == layouts.UINT8_NHWC
        self._type: np.dtype[Any] = np.dtype(np.uint8 if pixels else np.float32)
        self._pad = PAD if pixels else _GREY
        self._shape, self._across = layouts.shape_of(layout, size), (1, 2) if pixels else (2, 3)
        # A memoryview, because otherwise the base of every view would be this array, which is always alive.
        self._bytes = np.empty(3 * size[0] * size[1] * self._type.itemsize, dtype=np.uint8).data
        self._held: Callable[[], Optional[npt.NDArray[Any]]] = lambda: None
        self._box: Optional[Letterbox] = None

    @property
    def free(self) -> bool:
        return self._held() is None

    def array(self, box: Letterbox) -> npt.NDArray[Any]:
        """A new array over this memory, with grey padding around `box`."""
        flat = np.frombuffer(self._bytes, dtype=self._type)
        self._held = weakref.ref(flat)  # the base of all views of it
        x = flat.reshape(self._shape)
        if box != self._box:
            (h, w), top, left = box.resized, box.top, box.left
            rows = np.moveaxis(x, self._across, (0, 1))
            rows[:top], rows[top + h :] = self._pad, self._pad
            rows[top : top + h, :left], rows[top : top + h, left + w :] = self._pad, self._pad
            self._box = box
        return x


def _place(shape: Tuple[int, int], size: Tuple[int, int]) -> Letterbox:
    scale = min(size[0] / shape[0], size[1] / shape[1])
    h, w = _resized(shape, scale)
    return Letterbox(size, scale, round((size[1] - w) / 2 - 0.1), round((size[0] - h) / 2 - 0.1), shape)


def _resized(shape: Tuple[int, int], scale: float) -> Tuple[int, int]:
    return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)


def _resize(image: npt.NDArray[np.uint8], h: int, w: int, small: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Resize to (h, w, 3) uint8 with INTER_LINEAR, into `small` if OpenCV resizes.

    The result is a view of `image` if that contains every pixel of the result.
    """
    cv2 = _opencv()
    one = (1, 1) in (image.shape[:2], (h, w))  # OpenCV 4.5.4 refuses numpy arrays of a single pixel
    if cv2 is None or one or _every(image.shape, h, w):
        return resize_numpy(image, h, w)
    resized: npt.NDArray[np.uint8] = cv2.resize(image, (w, h), dst=small, interpolation=cv2.INTER_LINEAR)
    return resized


def _copy(pixels: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
    """(h, w, 3) uint8 -> `out`; by whole rows if possible, else by colours, because numpy is slow on rows of three."""
    if pixels.strides[1:] == out.strides[1:]:
        np.copyto(out, pixels)
        return
    for colour in range(3):
        out[..., colour] = pixels[..., colour]


def _every(shape: Sequence[int], h: int, w: int) -> Tuple[int, ...]:
    """(3, 3) if linear interpolation selects the middle pixel of each 3 x 3 block; () if it mixes pixels."""
    y, x = shape[0] // h, shape[1] // w
    whole = (y * h, x * w) == tuple(shape[:2])
    return (y, x) if whole and y % 2 and x % 2 else ()


def _normalise(image: npt.NDArray[np.uint8], out: npt.NDArray[np.float32], planes: npt.NDArray[np.uint8]) -> None:
    """(h, w, 3) uint8 -> `out`, (3, h, w) float32: plane by plane, divided by 255.

    `planes` is scratch memory for the uint8 planes.
    """
    cv2 = _opencv()
    if image.strides[1] == 1:  # already in planes, row by row, as `resize_numpy` leaves it
        planes = image.transpose(2, 0, 1)
    elif cv2 is not None and image.flags.c_contiguous:
        cv2.split(image, list(planes))
    else:
        np.copyto(planes, image.transpose(2, 0, 1))
    # Division instead of multiplication by 1/255, so that the last bit equals torch's `image / 255`.
    np.divide(planes, np.float32(255), out=out)


def uses_opencv() -> bool:
    """Whether OpenCV is used here (EDGEPRUNE_OPENCV=0 disables it)."""
    return _opencv() is not None


@lru_cache(maxsize=1)
def _opencv() -> Optional[ModuleType]:
    if os.environ.get("EDGEPRUNE_OPENCV") == "0":
        return None
    try:
        import cv2
    except Exception:  # not only ImportError: shared libraries of a broken build fail in other ways
        sys.modules.pop("cv2", None)
        return None
    return cv2


def resize_numpy(image: npt.NDArray[np.uint8], h: int, w: int) -> npt.NDArray[np.uint8]:
    """Resize as OpenCV's INTER_LINEAR does for uint8, in the same fixed-point arithmetic (11 bits for each axis).

    Args:
        image: (h', w', 3) uint8.
        h: Height of the result, px.
        w: Width of the result, px.

    Returns:
        (h, w, 3) uint8. It is a view of the image if no pixels are mixed. Otherwise its memory is ordered by row, and
            in each row by plane, because numpy is fast on long rows and slow on rows of three.
    """
    every = _every(image.shape, h, w)
    if every:
        y, x = every
        return image[y // 2 :: y, x // 2 :: x]
    (y, odd_y), (x, odd_x) = divmod(image.shape[0], 2 * h), divmod(image.shape[1], 2 * w)
    if not odd_y and not odd_x:
        return _mean_of_four(image, h, w, y, x)
    y0, y1, b0, b1 = _taps(image.shape[0], h, across=False)
    x0, x1, a1, rest = _columns(image.shape[1], w)
    b0, b1 = b0[:, None], b1[:, None]
    pixels = np.ascontiguousarray(image).reshape(image.shape[0], -1)
    result = np.empty((h, 3 * w), dtype=np.uint8)
    # Horizontally first, and only the needed rows: OpenCV's order, which gives the same rounding.
    for start in range(0, h, _STRIP):
        part = slice(start, start + _STRIP)
        upper, lower = y0[part], y1[part]
        if lower[-1] - upper[0] <= 2 * _STRIP:  # neighbours, of which most are needed
            rows, first = pixels[upper[0] : lower[-1] + 1], upper[0]
            upper, lower = upper - first, lower - first
        else:
            rows, count = pixels[np.concatenate([upper, lower])], len(upper)
            upper, lower = np.arange(count), np.arange(count, 2 * count)
        across = _across(rows, x0, x1, a1, rest).astype(np.int32)
        up, low = across.take(upper, axis=0), across.take(lower, axis=0)
        up *= b0[part]
        up >>= 16
        low *= b1[part]
        low >>= 16
        up += low
        up += 2
        up >>= 2
        result[part] = up
    resized: npt.NDArray[np.uint8] = result.reshape(h, 3, w).transpose(0, 2, 1)
    return resized


def _across(
    rows: npt.NDArray[np.uint8],
    x0: npt.NDArray[np.int64],
    x1: npt.NDArray[np.int64],
    a1: npt.NDArray[np.int16],
    rest: Optional[npt.NDArray[np.int16]],
) -> npt.NDArray[np.int16]:
    """Interpolate rows horizontally: (p0 * w0 + p1 * w1) >> 4, at most 32,640, in 16 bits, for SIMD of twice the width.

    As w0 + w1 is 2048, this is p0 * 128 + ((p1 - p0) * w1 >> 4), and w1 is 16 * a1 + rest; see `_columns`.
    """
    across = rows.take(x0, axis=1).astype(np.int16)
    difference = rows.take(x1, axis=1).astype(np.int16)
    difference -= across
    across <<= 7
    if rest is not None:
        small = difference * rest
        small >>= 4
        across += small
    difference *= a1
    across += difference
    return across


def _mean_of_four(image: npt.NDArray[np.uint8], h: int, w: int, y: int, x: int) -> npt.NDArray[np.uint8]:
    """The mean of the four middle pixels of each block of 2y x 2x: the weights are 1024. The layout is that of
    `resize_numpy`.
    """
    pairs = np.add(image[y - 1 :: 2 * y], image[y :: 2 * y], dtype=np.uint16).reshape(h, -1)
    result = np.empty((h, 3, w), dtype=np.uint8)
    for colour in range(3):
        total = pairs[:, 3 * (x - 1) + colour :: 6 * x] + pairs[:, 3 * x + colour :: 6 * x]
        total += 2
        total >>= 2
        result[:, colour] = total
    pixels: npt.NDArray[np.uint8] = result.transpose(0, 2, 1)
    return pixels


@lru_cache(maxsize=16)
def _columns(
    source: int, target: int
) -> Tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int16], Optional[npt.NDArray[np.int16]]]:
    """The two source columns of each output column, by plane, and the second weight as 16 * a1 + rest.

    `rest` is None if it is 0 everywhere, as for 640 to 512 px.
    """
    x0, x1, _, w1 = _taps(source, target, across=True)
    colour = np.arange(3)[:, None]
    a1, rest = np.tile(w1 >> 4, 3).astype(np.int16), np.tile(w1 & 15, 3).astype(np.int16)
    return (3 * x0 + colour).reshape(-1), (3 * x1 + colour).reshape(-1), a1, rest if rest.any() else None


@lru_cache(maxsize=16)
def _taps(
    source: int, target: int, across: bool
) -> Tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """For each output position, the two source positions and their weights, which sum to 2048. Not to be written to."""
    scale = 1.0 / (target / source)  # OpenCV inverts twice; the last bit affects some rounding
    position = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    low = np.floor(position).astype(np.int64)
    fraction = position - low.astype(np.float32)
    if across:  # OpenCV drops the second tap at the left and right edge, but not at the top and bottom
        fraction[(low < 0) | (low >= source - 1)] = 0
    w1 = np.rint(fraction * np.float32(2048)).astype(np.int32)
    w0 = np.rint((np.float32(1) - fraction) * np.float32(2048)).astype(np.int32)
    return low.clip(0, source - 1), (low + 1).clip(0, source - 1), w0, w1
