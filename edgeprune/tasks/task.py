"""The host's part of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from edgeprune_device.vision import tasks
from edgeprune_device.vision.preprocess import Letterbox

__all__ = ["Task"]

#: A table of labels.
Table = npt.NDArray[np.float64]


class Task(ABC):
    """The host's part of a task.

    Attributes:
        name: Its name.
        network: Ultralytics' class of its network.
        objects: Its objects, as words in messages.
        width: Values of a label after it has been read, with its class.
        foreign: {number of values: the objects that have it}: a data set whose every line has that number of values is
            refused, because its labels are of another task.
        nms_in_file: Whether `--nms` can put its NMS into the ONNX file.
    """

    name: str
    network: str
    objects: str
    width: int
    foreign: Mapping[int, str] = MappingProxyType({})
    nms_in_file: bool = False

    @property
    def on_device(self) -> tasks.Task:
        """The device's part: outputs, rows and overlap."""
        return tasks.get(self.name)

    @abstractmethod
    def miscounted(self, count: int) -> str | None:
        """The expected values, as words, if a line of a label file may not have this number of them; else None."""

    @abstractmethod
    def label(self, values: Sequence[float]) -> list[float]:
        """A line of a label file as a row of `width` values.

        Args:
            values: Class and coordinates, normalised, of an accepted number.

        Raises:
            ValueError: The fault of the line, in words.
        """

    @abstractmethod
    def truth(self, rows: Table, shape: tuple[int, int]) -> Table:
        """Labels in px.

        Args:
            rows: (n, width) rows of `label`.
            shape: (height, width) of the image, px.

        Returns:
            (n, 1 + columns) [class, the columns of the device's rows], px.
        """

    @abstractmethod
    def targets(self, truth: Table, box: Letterbox) -> Table:
        """Labels as Ultralytics' losses take them.

        Args:
            truth: The result of `truth`.
            box: The letterbox of the image.

        Returns:
            (n, 1 + values) [class, …], normalised to the letterboxed image.
        """
