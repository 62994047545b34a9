"""Images of a data set as the network takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from edgeprune_device.vision import preprocess

from edgeprune.data.dataset import Dataset

#: Pixels that fit in memory at once during compensation, all images together (32 images of 640 x 640).
_PIXELS = 32 * 640 * 640


@dataclass(frozen=True)
class Samples:
    """Labelled training images, ready for the network.

    Attributes:
        pictures: (N, 3, H, W) float32 in [0, 1], letterboxed.
        labels: N arrays (n, 5) [class, cx, cy, w, h], normalised to the letterboxed image.
    """

    pictures: torch.Tensor
    labels: tuple[np.ndarray, ...]

    def batch(self, start: int, stop: int) -> dict:
        """The images from `start` up to `stop`, as the batch that Ultralytics' losses take."""
        labels = [torch.from_numpy(np.asarray(a, dtype=np.float32)) for a in self.labels[start:stop]]
        index = torch.cat([torch.full((len(a),), float(i)) for i, a in enumerate(labels)])
        rows = torch.cat(labels)
        return {"img": self.pictures[start:stop], "cls": rows[:, :1], "bboxes": rows[:, 1:], "batch_idx": index}


def affordable(imgsz: int) -> int:
    """The number of images of this size (px) to solve with."""
    return int(min(max(_PIXELS // imgsz**2, 8), 64))


def pick(pictures: Sequence[Path], count: int) -> list[Path]:
    """`count` images spread evenly over the list; neighbours are often frames of one flight."""
    if len(pictures) <= count:
        return list(pictures)
    return [pictures[int(i)] for i in np.linspace(0, len(pictures) - 1, count).round()]


def split(pictures: Sequence[Path], imgsz: int) -> tuple[list[Path], list[Path]]:
    """Divide training images by use.

    Args:
        pictures: The training images.
        imgsz: The side of the square image, px.

    Returns:
        (images to solve with: scores, compensation, calibration; selection images: between criteria, between
            calibration methods). The two do not overlap unless there are fewer than eight images in all.
    """
    if len(pictures) < 8:
        return list(pictures), list(pictures)
    solve = pick(pictures, min(affordable(imgsz), len(pictures) * 3 // 4))
    taken = set(solve)
    return solve, pick([p for p in pictures if p not in taken], 64)


def read(dataset: Dataset, pictures: Sequence[Path], imgsz: int) -> Samples:
    """Letterbox images and their labels.

    Args:
        dataset: The data set of the images.
        pictures: The images.
        imgsz: The side of the square network input, px.

    Raises:
        InputError: An image is damaged.
    """
    tensors, labels = [], []
    for path in pictures:
        image = preprocess.decode(path)
        x, box = preprocess.letterbox(image, imgsz)
        truth = dataset.truth(path, image.shape[:2])
        xyxy = truth[:, 1:] * box.scale + (box.left, box.top, box.left, box.top)
        centre, size = (xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]
        tensors.append(torch.from_numpy(x))
        labels.append(np.concatenate([truth[:, :1], centre / imgsz, size / imgsz], axis=1))
    return Samples(torch.cat(tensors), tuple(labels))
