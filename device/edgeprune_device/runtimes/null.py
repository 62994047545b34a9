"""No inference: the session returns zeros of the right shape at once, so the benchmark measures its own overhead."""

from __future__ import annotations

from typing import List

import numpy as np

from edgeprune_device.errors import InputError
from edgeprune_device.runtimes import Session

AUTOMATIC = 0


def available():
    """None: this runtime can always run."""
    return None


def open(model, settings) -> Session:
    """Make a session for the shapes in `settings.shapes`; the model is not read.

    Raises:
        InputError: There are no shapes.
    """
    if settings.shapes is None:
        raise InputError("runtime null does not read models: it needs the shapes (a bundle's manifest has them)")
    return NullSession(settings.shapes)


class NullSession(Session):
    """A session that returns the same zeros every time.

    Args:
        shapes: See `edgeprune_device.runtimes.Shapes`.
    """

    name = "null"
    description = "null (no inference: measures the harness)"

    def __init__(self, shapes):
        self.input_shape = tuple(shapes[0])
        self._outputs = [np.zeros(shape, dtype=np.float32) for shape in shapes[1]]

    def infer(self, x: np.ndarray) -> List[np.ndarray]:
        """Return zeros.

        Raises:
            InputError: `x` does not have the model's input shape.
        """
        if tuple(x.shape) != self.input_shape:
            raise InputError(f"the model takes {self.input_shape}, not {tuple(x.shape)}")
        return self._outputs
