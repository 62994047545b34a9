"""The types of this folder: the layers that surgery can prune, and the arrays over their channels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import nn

#: A layer that surgery can prune.
Layer = nn.modules.conv._ConvNd | nn.Linear | nn.modules.batchnorm._BatchNorm

#: Indices of atoms, channels or groups; counts.
Ints = npt.NDArray[np.int64]
#: Scores and costs; also counts for a cost model.
Floats = npt.NDArray[np.float64]
#: One boolean for each atom: True = keep.
Mask = npt.NDArray[np.bool_]


def layers(model: nn.Module) -> dict[str, Layer]:
    """The layers that surgery can prune, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Layer)}


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions over two dimensions, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


def norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """The batch norms over two dimensions, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
