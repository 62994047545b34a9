"""No inference at all: zeros of the right shape, at once. What is then measured is the harness itself."""

from __future__ import annotations

from typing import List

import numpy as np

from edgeprune_device.errors import InputError
from edgeprune_device.runtimes import Session

AUTOMATIC = 0


def available():
    """Always."""
    return None


def open(model, settings) -> Session:
    """`settings.shapes` says what to return; the model is not even read."""
    if settings.shapes is None:
        raise InputError("runtime null does not read models: it needs the shapes (a bundle's manifest has them)")
    return NullSession(settings.shapes)


class NullSession(Session):
    """Returns the same zeros every time."""

    name = "null"
    description = "null (no inference: measures the harness)"

    def __init__(self, shapes):
        self.input_shape = tuple(shapes[0])
        self._outputs = [np.zeros(shape, dtype=np.float32) for shape in shapes[1]]

    def infer(self, x: np.ndarray) -> List[np.ndarray]:
        """Zeros; InputError when x has not the model's input shape."""
        if tuple(x.shape) != self.input_shape:
            raise InputError(f"the model takes {self.input_shape}, not {tuple(x.shape)}")
        return self._outputs
