"""Training batches of exactly one size, which need not be square.

Ultralytics trains on squares of one side, `imgsz`. Its `rect=True` gives each batch another shape, and switches mosaic
and shuffling off. Here every image is scaled into the rectangle, as it is on the drone, and the transforms that cut a
square cut the rectangle instead. Shuffling, mosaic and all other augmentation stay those of Ultralytics.
"""

from __future__ import annotations

from typing import Any

import cv2
from edgeprune_device.size import Size
from ultralytics.data import YOLODataset, augment
from ultralytics.utils import IterableSimpleNamespace


class ShapedDataset(YOLODataset):
    """A data set whose images have one size, (height, width) px; its `imgsz` is the longer side."""

    size: Size

    @classmethod
    def of(cls, dataset: YOLODataset, size: Size) -> ShapedDataset:
        """Give a data set of Ultralytics, made for the longer side, this size.

        Args:
            dataset: The data set, with augmentation; it is changed and returned.
            size: The size of its images, px.
        """
        shaped: Any = dataset
        shaped.__class__ = cls  # Ultralytics chooses the arguments of the data set that it makes
        shaped.size = size
        _resize(shaped.transforms, size)
        made: ShapedDataset = shaped
        return made

    def build_transforms(self, hyp: IterableSimpleNamespace) -> Any:
        """Ultralytics' transforms for this size; the trainer asks again when mosaic ends."""
        transforms = super().build_transforms(hyp)
        _resize(transforms, self.size)
        return transforms

    def load_image(self, *args: Any, **kwargs: Any) -> Any:
        """(image, its original (h, w), its (h, w)), scaled to fit into the size."""
        image, original, (height, width) = super().load_image(*args, **kwargs)
        scale = min(self.size.height / height, self.size.width / width)
        if scale < 1:  # its longer side fits, but its other side does not
            height, width = max(round(height * scale), 1), max(round(width * scale), 1)
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
            image = image[..., None] if image.ndim == 2 else image
        return image, original, (height, width)


def _resize(transform: Any, size: Size) -> None:
    """Set the output of every transform that cuts or pads; transforms can contain others."""
    if isinstance(transform, augment.Compose):
        for inner in transform.transforms:
            _resize(inner, size)
    if getattr(transform, "pre_transform", None) is not None:
        _resize(transform.pre_transform, size)
    if isinstance(transform, augment.Mosaic):
        # Four images meet at a point of a canvas whose sides are twice `imgsz`; the rectangle is cut from the centre of
        # the canvas. This border keeps the point inside the rectangle.
        transform.border = size.height // 2 - transform.imgsz, size.width // 2 - transform.imgsz
    elif isinstance(transform, augment.RandomPerspective):
        transform.size = (size.width, size.height)
    elif isinstance(transform, augment.LetterBox):
        transform.new_shape = (size.height, size.width)
