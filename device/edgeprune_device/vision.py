"""Pictures to network input, network output to boxes: decode, letterbox, NMS, in numpy and Pillow.

The same numbers as Ultralytics' `LetterBox(auto=False)`, `non_max_suppression` and `scale_boxes`, without torch.
OpenCV is used for resizing where it is installed; without it the same fixed-point arithmetic runs in numpy.
Knows nothing of models beyond the shape of their output.
"""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Sequence, Tuple, Union

import numpy as np
from PIL import Image, ImageOps

from edgeprune_device.errors import InputError

__all__ = ["PAD", "Letterbox", "decode", "detections", "letterbox", "resize_numpy", "uses_opencv"]

PAD = 114  # the grey that Ultralytics trains with
_MAX_CANDIDATES = 30_000  # before NMS, as Ultralytics' max_nms
_CLASS_OFFSET = 7680  # px between classes, so that one NMS serves all of them; Ultralytics' max_wh
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
        (height, width), (h, w) = self.shape, self.resized
        # Each axis by its own gain: rounding to whole pixels makes them differ for thin pictures.
        out[:, [0, 2]] = ((out[:, [0, 2]] - self.left) / np.float32(w / width)).clip(0, width)
        out[:, [1, 3]] = ((out[:, [1, 3]] - self.top) / np.float32(h / height)).clip(0, height)
        return out


def letterbox(image: np.ndarray, size: Union[int, Sequence[int]]) -> Tuple[np.ndarray, Letterbox]:
    """(h, w, 3) uint8 RGB -> ((1, 3, size, size) float32 in [0, 1], Letterbox); the picture centred on grey 114.

    `size`: one number for a square, or (height, width); px.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise InputError(f"letterbox takes an (h, w, 3) uint8 picture, not {image.shape} {image.dtype}")
    height, width = (size, size) if isinstance(size, (int, np.integer)) else (int(size[0]), int(size[1]))
    shape = (int(image.shape[0]), int(image.shape[1]))
    scale = min(height / shape[0], width / shape[1])
    h, w = _resized(shape, scale)
    if (h, w) != shape:
        image = _resize(image, h, w)
    top, left = round((height - h) / 2 - 0.1), round((width - w) / 2 - 0.1)
    x = np.full((1, 3, height, width), np.float32(PAD) / np.float32(255), dtype=np.float32)
    # Division and not multiplication by 1/255: the last bit then equals torch's `image / 255`.
    np.divide(image.transpose(2, 0, 1), np.float32(255), out=x[0, :, top : top + h, left : left + w])
    return x, Letterbox((height, width), scale, left, top, shape)


def _resized(shape: Tuple[int, int], scale: float) -> Tuple[int, int]:
    return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)


def _resize(image: np.ndarray, h: int, w: int) -> np.ndarray:
    cv2 = _opencv()
    if cv2 is not None:
        return cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    return resize_numpy(image, h, w)


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
    """OpenCV's INTER_LINEAR for uint8, in its own fixed-point arithmetic (11 bits for each axis)."""
    if image.shape[0] == 2 * h and image.shape[1] == 2 * w:  # OpenCV's special case: the mean of 2 x 2
        total = image[::2, ::2].astype(np.uint16)
        for part in (image[::2, 1::2], image[1::2, ::2], image[1::2, 1::2]):
            total += part
        return ((total + 2) >> 2).astype(np.uint8)
    y0, y1, b0, b1 = _taps(image.shape[0], h, across=False)
    x0, x1, a0, a1 = _taps(image.shape[1], w, across=True)
    # Across first, and only the rows that are needed: OpenCV's order, and so its roundings.
    rows, inverse = np.unique(np.concatenate([y0, y1]), return_inverse=True)
    inverse = inverse.reshape(-1)
    source = image[rows]
    across = np.take(source, x0, axis=1) * a0[:, None]
    across += np.take(source, x1, axis=1) * a1[:, None]
    across >>= 4
    result = np.full((h, w, 3), 2, dtype=np.int32)
    for weight, index in ((b0, inverse[:h]), (b1, inverse[h:])):
        part = across[index]
        part *= weight[:, None, None]
        part >>= 16
        result += part
    result >>= 2
    return result.astype(np.uint8)


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
    *,
    classes: int,
    conf: float,
    iou: float = 0.7,
    max_det: int = 300,
    multi_label: bool = False,
    agnostic: bool = False,
) -> np.ndarray:
    """Network outputs -> (n, 6) float32 [x1, y1, x2, y2, score, class] in network px, best score first.

    Takes the first output: (1, 4+classes, N) raw [cx, cy, w, h, scores] as YOLOv8 exports it, or (1, n, 6) end to end
    (already [x1, y1, x2, y2, score, class]; only filtered). `multi_label` gives one detection for each class above
    `conf`, as Ultralytics' val does; otherwise the best class only. InputError for any other shape.
    """
    out = np.asarray(outputs[0])
    if out.ndim == 3 and out.shape[0] == 1 and out.shape[1] == 4 + classes:
        rows = _candidates(out[0], conf, multi_label and classes > 1)
        offset = rows[:, 5:6] * np.float32(0 if agnostic else _CLASS_OFFSET)
        return rows[_nms(rows[:, :4] + offset, rows[:, 4], iou, max_det)]
    if out.ndim == 3 and out.shape[0] == 1 and out.shape[2] == 6:
        rows = out[0].astype(np.float32)
        return rows[rows[:, 4] > conf][:max_det]
    raise InputError(
        f"the model's output has shape {tuple(out.shape)}: neither (1, {4 + classes}, N) for {classes} classes "
        "nor (1, n, 6) end to end; check the class list, or that it is a detector"
    )


def _candidates(raw: np.ndarray, conf: float, multi_label: bool) -> np.ndarray:
    """(4+nc, N) -> (n, 6) rows above conf, corner boxes. Filters before anything else: most of N is background."""
    with np.errstate(invalid="ignore"):  # a broken model's NaN is above nothing
        keep = np.flatnonzero(raw[4:].max(axis=0) > conf)
    picked = raw[:, keep].T.astype(np.float32)
    scores = picked[:, 4:]
    if multi_label:
        row, label = np.nonzero(scores > conf)
    else:
        row, label = np.arange(len(keep)), scores.argmax(axis=1) if len(keep) else np.zeros(0, int)
    half = picked[:, 2:4] / 2
    corners = np.concatenate([picked[:, :2] - half, picked[:, :2] + half], axis=1)
    rows = np.empty((len(row), 6), dtype=np.float32)
    rows[:, :4], rows[:, 4], rows[:, 5] = corners[row], scores[row, label], label
    order = np.argsort(-rows[:, 4], kind="stable")[:_MAX_CANDIDATES]
    return rows[order]


def _nms(boxes: np.ndarray, scores: np.ndarray, iou: float, max_det: int) -> np.ndarray:
    """Greedy NMS; boxes (n, 4) float32 sorted by score, best first. Indices kept, at most max_det."""
    kept = []
    left = np.arange(len(boxes))
    x1, y1, x2, y2 = (np.ascontiguousarray(column) for column in boxes.T)
    area = (x2 - x1) * (y2 - y1)
    with np.errstate(invalid="ignore", divide="ignore"):
        while len(left) and len(kept) < max_det:
            i, rest = left[0], left[1:]
            kept.append(i)
            w = np.minimum(x2[i], x2[rest]) - np.maximum(x1[i], x1[rest])
            h = np.minimum(y2[i], y2[rest]) - np.maximum(y1[i], y1[rest])
            both = np.maximum(w, 0) * np.maximum(h, 0)
            left = rest[~(both / (area[i] + area[rest] - both) > iou)]
    return np.array(kept, dtype=np.int64)
