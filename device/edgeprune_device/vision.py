"""Pictures to network input, network output to boxes: decode, letterbox, NMS, in numpy and Pillow.

The same numbers as Ultralytics' `LetterBox(auto=False)`, `non_max_suppression` and `scale_boxes`, without torch.
OpenCV is used for resizing where it is installed; without it the same fixed-point arithmetic runs in numpy.
Knows nothing of models beyond what is stated of their output.
"""

from __future__ import annotations

import io
import os
import sys
import weakref
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import List, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image, ImageOps

from edgeprune_device.errors import InputError
from edgeprune_device.output import END2END, checked

__all__ = ["PAD", "Letterbox", "Preprocessor", "decode", "detections", "letterbox", "resize_numpy", "uses_opencv"]

PAD = 114  # the grey that Ultralytics trains with
_MAX_CANDIDATES = 30_000  # before NMS, as Ultralytics' max_nms
_CLASS_OFFSET = 7680  # px between classes, so that one NMS serves all of them; Ultralytics' max_wh
_NMS_BLOCK = 512  # candidates at a time
_PAIRS = 1 << 18  # compared at a time; bounds the memory, whatever a broken model says
_STRIP = 32  # picture rows at a time in numpy: what lies between two steps stays in the processor's cache
# Division and not multiplication by 1/255: the last bit then equals torch's `image / 255`.
_LEVELS = np.arange(256, dtype=np.float32) / np.float32(255)
_ORIENTATION = 0x0112  # EXIF tag
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF")  # never the ones that call other programs


def decode(source: Union[str, Path, bytes], name: str = "") -> np.ndarray:
    """Picture file or its bytes -> (h, w, 3) uint8 RGB, C-contiguous.

    As Ultralytics reads labelled pictures: upright (EXIF orientation applied), alpha dropped, grey and palette
    expanded, 16 bits reduced to their high byte. InputError names the file (`name` for bytes).
    """
    what = name or (str(source) if not isinstance(source, bytes) else "picture")
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"{what}: the picture cannot be read ({str(error.strerror).lower()})") from error
    with stream:
        try:
            with Image.open(stream, formats=_FORMATS) as image:
                return np.ascontiguousarray(_rgb(_upright(image)))
        except MemoryError:
            raise
        except Exception as error:  # a damaged file makes Pillow's plug-ins raise almost anything
            known = not isinstance(error, Image.UnidentifiedImageError)
            reason = (str(error).split("\n")[0] or type(error).__name__) if known else "unknown format"
            raise InputError(f"{what}: not a picture that can be decoded ({reason})") from error


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # damaged EXIF is no reason to lose a picture; OpenCV ignores it too
        return image


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F" or image.mode.startswith("I"):  # 16-bit grey is "I;16", or "I" in older Pillow
        raw = np.asarray(image)
        if image.mode == "F" or raw.size == 0 or raw.min() < 0 or raw.max() > 0xFFFF:
            raise ValueError(f"pixels of mode {image.mode} are not 8- or 16-bit")
        grey = (raw >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


@dataclass(frozen=True)
class Letterbox:
    """How a picture lies in the network's input: Letterbox((640, 640), scale=1.0, left=0, top=64, shape=(512, 640)).

    - `size`: (height, width) of the network input, px
    - `scale`: network px per picture px, before rounding to whole pixels
    - `left`, `top`: padding, px
    - `shape`: (height, width) of the picture, px
    """

    size: Tuple[int, int]
    scale: float
    left: int
    top: int
    shape: Tuple[int, int]

    @property
    def resized(self) -> Tuple[int, int]:
        """(height, width) of the picture inside the network input, whole px."""
        return _resized(self.shape, self.scale)

    def undo(self, dets: np.ndarray) -> np.ndarray:
        """(n, 6+) detections in network px -> a copy in picture px, clipped to the picture."""
        out = np.array(dets, dtype=np.float32)
        # Each axis by its own gain: rounding to whole pixels makes them differ for thin pictures.
        for axis, pad in ((1, self.left), (0, self.top)):
            limit, edges = self.shape[axis], out[:, 1 - axis : 4 : 2]
            edges -= pad
            edges /= np.float32(self.resized[axis] / limit)
            np.minimum(np.maximum(edges, 0, out=edges), limit, out=edges)
        return out


def letterbox(image: np.ndarray, size: Union[int, Sequence[int]]) -> Tuple[np.ndarray, Letterbox]:
    """(h, w, 3) uint8 RGB -> ((1, 3, size, size) float32 in [0, 1], Letterbox); the picture centred on grey 114.

    `size`: one number for a square, or (height, width); px. For picture after picture `Preprocessor` is quicker.
    """
    return Preprocessor(size)(image)


class Preprocessor:
    """`letterbox` for picture after picture, in memory used again and again: `x, box = Preprocessor(640)(image)`.

    `x` stays as it is for as long as anybody holds it or a view of it; its memory is taken again only after that. Its
    padding is not painted again either, so write nothing into it. One thread at a time calls a Preprocessor; what it
    returned may go to any other.
    """

    _MEMORIES = 4  # one being filled and some on their way; who holds more gets fresh ones

    def __init__(self, size: Union[int, Sequence[int]]):
        height, width = (size, size) if isinstance(size, (int, np.integer)) else (int(size[0]), int(size[1]))
        self.size = (int(height), int(width))
        self._memories: List[_Memory] = []
        self._box: Optional[Letterbox] = None  # what the two below are made for
        self._small = self._planes = np.empty(0, dtype=np.uint8)

    def __call__(self, image: np.ndarray) -> Tuple[np.ndarray, Letterbox]:
        """As `letterbox`."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise InputError(f"letterbox takes an (h, w, 3) uint8 picture, not {image.shape} {image.dtype}")
        box = _place((int(image.shape[0]), int(image.shape[1])), self.size)
        h, w = box.resized
        if box != self._box:
            self._box = box
            self._small, self._planes = np.empty((h, w, 3), dtype=np.uint8), np.empty((3, h, w), dtype=np.uint8)
        memory = self._memory()
        x = memory.array(box)
        image = _resize(image, h, w, self._small)
        _normalise(image, x[0, :, box.top : box.top + h, box.left : box.left + w], self._planes)
        return x, box

    def _memory(self) -> _Memory:
        for memory in self._memories:
            if memory.free:
                return memory
        memory = _Memory(self.size)
        if len(self._memories) < self._MEMORIES:
            self._memories.append(memory)
        return memory


class _Memory:
    """Room for one (1, 3, h, w) float32 array, and whether somebody holds that array."""

    def __init__(self, size: Tuple[int, int]):
        self._shape = (1, 3, *size)
        # Through a memoryview: numpy would make the owner the base of every view, and it lives as long as this does.
        self._bytes = memoryview(np.empty(12 * size[0] * size[1], dtype=np.uint8))
        self._held = lambda: None
        self._box: Optional[Letterbox] = None

    @property
    def free(self) -> bool:
        return self._held() is None

    def array(self, box: Letterbox) -> np.ndarray:
        """A new array over this memory, grey where `box` leaves padding."""
        flat = np.frombuffer(self._bytes, dtype=np.float32)
        self._held = weakref.ref(flat)  # the base of all views of it
        x = flat.reshape(self._shape)
        if box != self._box:
            (h, w), top, left = box.resized, box.top, box.left
            x[0, :, :top], x[0, :, top + h :] = _LEVELS[PAD], _LEVELS[PAD]
            x[0, :, top : top + h, :left], x[0, :, top : top + h, left + w :] = _LEVELS[PAD], _LEVELS[PAD]
            self._box = box
        return x


def _place(shape: Tuple[int, int], size: Tuple[int, int]) -> Letterbox:
    scale = min(size[0] / shape[0], size[1] / shape[1])
    h, w = _resized(shape, scale)
    return Letterbox(size, scale, round((size[1] - w) / 2 - 0.1), round((size[0] - h) / 2 - 0.1), shape)


def _resized(shape: Tuple[int, int], scale: float) -> Tuple[int, int]:
    return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)


def _resize(image: np.ndarray, h: int, w: int, small: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 by INTER_LINEAR; a view of `image` where that holds every pixel of the answer. `small`: room."""
    cv2 = _opencv()
    one = (1, 1) in (image.shape[:2], (h, w))  # OpenCV 4.5.4 refuses numpy's pictures of a single pixel
    if cv2 is None or one or _every(image.shape, h, w):
        return resize_numpy(image, h, w)
    return cv2.resize(image, (w, h), dst=small, interpolation=cv2.INTER_LINEAR)


def _every(shape: Sequence[int], h: int, w: int) -> Tuple[int, ...]:
    """(3, 3) where linear interpolation takes the middle pixel of each 3 x 3 as it is; () where it mixes pixels."""
    y, x = shape[0] // h, shape[1] // w
    whole = (y * h, x * w) == tuple(shape[:2])
    return (y, x) if whole and y % 2 and x % 2 else ()


def _normalise(image: np.ndarray, out: np.ndarray, planes: np.ndarray) -> None:
    """(h, w, 3) uint8 -> `out`, (3, h, w) float32: plane by plane, divided by 255. `planes`: room for uint8 ones."""
    cv2 = _opencv()
    if cv2 is not None and image.flags.c_contiguous:
        cv2.split(image, list(planes))
    else:
        np.copyto(planes, image.transpose(2, 0, 1))
    if cv2 is None:
        np.divide(planes, np.float32(255), out=out)
        return
    for plane, result in zip(planes, out):
        cv2.LUT(plane, _LEVELS, result)


def uses_opencv() -> bool:
    """Whether OpenCV does the resizing here (EDGEPRUNE_OPENCV=0 forbids it)."""
    return _opencv() is not None


@lru_cache(maxsize=1)
def _opencv():
    if os.environ.get("EDGEPRUNE_OPENCV") == "0":
        return None
    try:
        import cv2
    except Exception:  # not only ImportError: a broken build fails on its shared libraries
        sys.modules.pop("cv2", None)
        return None
    return cv2


def resize_numpy(image: np.ndarray, h: int, w: int) -> np.ndarray:
    """OpenCV's INTER_LINEAR for uint8, in its own fixed-point arithmetic (11 bits for each axis).

    Returns (h, w, 3): a view of the picture's own pixels where none are mixed, otherwise in memory row by row and in
    each row plane by plane, because numpy is quick on long rows and not on rows of three.
    """
    every = _every(image.shape, h, w)
    if every:
        y, x = every
        return image[y // 2 :: y, x // 2 :: x]
    if image.shape[0] == 2 * h and image.shape[1] == 2 * w:
        return _halved(image)
    y0, y1, b0, b1 = _taps(image.shape[0], h, across=False)
    x0, x1, a0, a1 = _taps(image.shape[1], w, across=True)
    pixels = np.ascontiguousarray(image).reshape(image.shape[0], -1)
    colour = np.arange(3)[:, None]
    x0, x1 = (3 * x0 + colour).reshape(-1), (3 * x1 + colour).reshape(-1)
    a0, a1 = np.tile(a0, 3), np.tile(a1, 3)
    # Across first, and only the rows that are needed: OpenCV's order, and so its roundings.
    rows, inverse = np.unique(np.concatenate([y0, y1]), return_inverse=True)
    y0, y1 = inverse.reshape(2, h)
    across = np.empty((len(rows), 3 * w), dtype=np.int32)
    for start in range(0, len(rows), _STRIP):
        source, strip = pixels[rows[start : start + _STRIP]], across[start : start + _STRIP]
        np.multiply(source.take(x0, axis=1), a0, out=strip)
        strip += source.take(x1, axis=1) * a1
        strip >>= 4
    result = np.empty((h, 3 * w), dtype=np.uint8)
    for start in range(0, h, _STRIP):
        part = slice(start, start + _STRIP)
        upper, lower = across[y0[part]], across[y1[part]]
        upper *= b0[part, None]
        upper >>= 16
        lower *= b1[part, None]
        lower >>= 16
        upper += lower
        upper += 2
        upper >>= 2
        result[part] = upper
    return result.reshape(h, 3, w).transpose(0, 2, 1)


def _halved(image: np.ndarray) -> np.ndarray:
    """OpenCV's special case: the mean of 2 x 2. As `resize_numpy` returns it."""
    h, w = image.shape[0] // 2, image.shape[1] // 2
    pairs = np.add(image[::2], image[1::2], dtype=np.uint16).reshape(h, -1)
    result = np.empty((h, 3, w), dtype=np.uint8)
    for colour in range(3):
        total = pairs[:, colour::6] + pairs[:, colour + 3 :: 6]
        total += 2
        total >>= 2
        result[:, colour] = total
    return result.transpose(0, 2, 1)


def _taps(source: int, target: int, across: bool) -> Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Per output position: the two source positions and their weights, which sum to 2048."""
    scale = 1.0 / (target / source)  # OpenCV inverts twice; the last bit decides some roundings
    position = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    low = np.floor(position).astype(np.int64)
    fraction = position - low.astype(np.float32)
    if across:  # OpenCV drops the second tap at the left and right edge, but not at the top and bottom
        fraction[(low < 0) | (low >= source - 1)] = 0
    w1 = np.rint(fraction * np.float32(2048)).astype(np.int32)
    w0 = np.rint((np.float32(1) - fraction) * np.float32(2048)).astype(np.int32)
    return low.clip(0, source - 1), (low + 1).clip(0, source - 1), w0, w1


def detections(
    outputs: Sequence[np.ndarray],
    kind: str,
    *,
    classes: int,
    conf: float,
    iou: float = 0.7,
    max_det: int = 300,
    multi_label: bool = False,
    agnostic: bool = False,
) -> np.ndarray:
    """Network outputs -> (n, 6) float32 [x1, y1, x2, y2, score, class] in network px, best score first.

    Takes the first output, which is what `kind` says (see output.py): raw as YOLOv8 exports it, or end to end, whose
    rows are only filtered. `multi_label` gives one detection for each class above `conf`, as Ultralytics' val does;
    otherwise the best class only. InputError for a shape that `kind` does not have.
    """
    out = checked(np.asarray(outputs[0]), kind, classes)
    if kind == END2END:
        rows = out[0].astype(np.float32)
        return rows[rows[:, 4] > conf][:max_det]
    with np.errstate(all="ignore"):  # a broken model's NaN is above nothing and overlaps nothing
        found = _candidates(out[0], conf, multi_label and classes > 1)
        kept = _nms(found[:4] + found[5] * np.float32(0 if agnostic else _CLASS_OFFSET), iou, max_det)
    return np.ascontiguousarray(found[:, kept].T)


def _candidates(raw: np.ndarray, conf: float, multi_label: bool) -> np.ndarray:
    """(4+nc, N) -> (6, n), corner boxes above conf. Filters before anything else: most of N is background."""
    keep = np.flatnonzero(raw[4:].max(axis=0) > conf)
    if not len(keep):
        return np.empty((6, 0), dtype=np.float32)
    picked = raw.take(keep, axis=1).astype(np.float32, copy=False)
    scores = picked[4:]
    if multi_label:
        box, label = np.nonzero((scores > conf).T)
        picked, score = picked[:4, box], scores[label, box]
    else:
        label, score = scores.argmax(axis=0), scores.max(axis=0)
    order = np.argsort(-score, kind="stable")[:_MAX_CANDIDATES]
    found = np.empty((6, len(order)), dtype=np.float32)
    half = picked[2:4] / 2
    found[:2], found[2:4] = (picked[:2] - half)[:, order], (picked[:2] + half)[:, order]
    found[4], found[5] = score[order], label[order]
    return found


def _nms(boxes: np.ndarray, iou: float, max_det: int) -> np.ndarray:
    """Greedy NMS; boxes (4, n) float32 sorted by score, best first. Indices kept, at most max_det."""
    kept = np.empty(0, dtype=np.int64)
    for start in range(0, boxes.shape[1], _NMS_BLOCK):
        # Whoever is kept is so again beside boxes of lower scores, and suppresses those of the next block.
        tried = np.concatenate([kept, np.arange(start, min(start + _NMS_BLOCK, boxes.shape[1]))])
        better, worse = _overlaps(boxes[:, tried], iou)
        kept = tried[_survivors(len(tried), better, worse)][:max_det]
        if len(kept) == max_det:
            break
    return kept


def _overlaps(boxes: np.ndarray, iou: float) -> Tuple[np.ndarray, np.ndarray]:
    """Pairs (better, worse) of indices whose boxes overlap by more than `iou`; boxes (4, n), best first.

    A box's partners begin shortly right of its own left edge: of boxes sorted by left edge only near ones are compared.
    """
    order = np.argsort(boxes[0])
    x1, y1, x2, y2 = boxes[:, order]
    width = x2 - x1
    area = width * (y2 - y1)
    # Overlap > iou * area of the left box, so at least that share of its width: the right box begins in the rest, in
    # any rounding. Areas near float32's smallest number prove nothing; there any overlap counts.
    reach = x1 + width * np.where(area > 1e-30, 1.00001 - iou, 1.00001)
    rank = np.arange(len(order))
    partners = np.maximum(np.searchsorted(x1, reach, side="right") - rank - 1, 0)
    step = max(_PAIRS // max(int(partners.max()), 1), 1)
    hits = []
    for start in range(0, len(order), step):
        ranks, counts = rank[start : start + step], partners[start : start + step]
        i = np.repeat(ranks, counts)
        j = np.arange(len(i)) + np.repeat(ranks + 1 + counts - np.cumsum(counts), counts)
        w = np.minimum(x2[i], x2[j]) - x1[j]
        h = np.minimum(y2[i], y2[j]) - np.maximum(y1[i], y1[j])
        both = np.maximum(w, 0) * np.maximum(h, 0)
        # Quotient in float32, comparison in float64, as torchvision: 0.6 in float32 is above 0.6.
        hit = (both / (area[i] + area[j] - both)).astype(np.float64) > iou
        hits.append((order[i[hit]], order[j[hit]]))
    one, other = (np.concatenate(side) for side in zip(*hits))
    return np.minimum(one, other), np.maximum(one, other)


def _survivors(n: int, better: np.ndarray, worse: np.ndarray) -> np.ndarray:
    """Indices of 0..n-1 that greedy suppression leaves, given who would suppress whom.

    In rounds: whom nobody better is left to suppress stays, and suppresses; a few rounds settle real pictures.
    """
    gone = np.zeros(n, dtype=bool)
    while len(better):
        stays = np.ones(n, dtype=bool)
        stays[worse] = False
        gone[worse[stays[better]]] = True
        unsettled = ~(gone[better] | gone[worse])
        better, worse = better[unsettled], worse[unsettled]
    return np.flatnonzero(~gone)
