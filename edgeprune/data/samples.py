"""Images of a data set in the network's input format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from edgeprune_device.size import Size
from edgeprune_device.vision import preprocess

from edgeprune.data.dataset import Dataset

#: Pixels of all images that fit in memory at once during compensation (32 images of 640 x 640).
_PIXELS = 32 * 640 * 640

_T = TypeVar("_T")


@dataclass(frozen=True)
class Samples:
    """Labelled training images, ready for the network.

    Attributes:
        pictures: (N, 3, H, W) float32 in [0, 1], letterboxed.
        labels: N arrays (n, 1 + values) of the task's targets; for detection [class, cx, cy, w, h], normalised to the
            letterboxed image.
    """

    pictures: torch.Tensor
    labels: tuple[npt.NDArray[np.float64], ...]

    def to(self, device: torch.device) -> Samples:
        """The same samples with their images on a device; criteria and compensation compute there.

        The images are stored channels last: convolutions and the gathering of patches are then faster.
        """
        return replace(self, pictures=self.pictures.to(device, memory_format=torch.channels_last))

    def batch(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        """The images from `start` up to `stop`, as a batch for Ultralytics' losses."""
        device = self.pictures.device
        labels = [torch.from_numpy(np.asarray(a, dtype=np.float32)) for a in self.labels[start:stop]]
        index = torch.cat([torch.full((len(a),), float(i)) for i, a in enumerate(labels)]).to(device)
        rows = torch.cat(labels).to(device)
        return {"img": self.pictures[start:stop], "cls": rows[:, :1], "bboxes": rows[:, 1:], "batch_idx": index}


def affordable(imgsz: int | Sequence[int]) -> int:
    """The number of images of this size (px) for compensation."""
    return int(min(max(_PIXELS // Size.of(imgsz).area, 8), 64))


def pick(pictures: Sequence[_T], count: int) -> list[_T]:
    """`count` images spread evenly over the list; neighbours are often frames of one flight."""
    if len(pictures) <= count:
        return list(pictures)
    return [pictures[int(i)] for i in np.linspace(0, len(pictures) - 1, count).round()]


def fewer(dataset: Dataset, count: int | None) -> Dataset:
    """The data set with `count` of its validation images, evenly spread; unchanged if it has no more, or if `count` is
    None.
    """
    if count is None or count >= len(dataset.val):
        return dataset
    return replace(dataset, val=tuple(pick(dataset.val, count)), val_total=len(dataset.val))


def split(pictures: Sequence[Path], imgsz: int | Sequence[int]) -> tuple[list[Path], list[Path]]:
    """Divide training images by use.

    Args:
        pictures: The training images.
        imgsz: The side of a square input, or (height, width), px.

    Returns:
        (images for scores, compensation and calibration; images for selection between criteria and between
            calibration methods). The two do not overlap unless there are fewer than eight images in total.
    """
    if len(pictures) < 8:
        return list(pictures), list(pictures)
    solve = pick(pictures, min(affordable(imgsz), len(pictures) * 3 // 4))
    taken = set(solve)
    return solve, pick([p for p in pictures if p not in taken], 64)


def read(dataset: Dataset, pictures: Sequence[Path], imgsz: int | Sequence[int]) -> Samples:
    """Letterbox images and their labels.

    Args:
        dataset: The data set of the images.
        pictures: The images.
        imgsz: The side of a square input, or (height, width), px.

    Raises:
        InputError: An image is damaged.
    """
    tensors, labels = [], []
    for path in pictures:
        image = preprocess.decode(path)
        x, box = preprocess.letterbox(image, imgsz)
        truth = dataset.truth(path, image.shape[:2])
        tensors.append(torch.from_numpy(x))
        labels.append(dataset.task.targets(truth, box))
    return Samples(torch.cat(tensors), tuple(labels))
