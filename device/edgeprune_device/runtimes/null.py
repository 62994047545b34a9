"""No inference: the session returns zeros of the right shape at once, so the benchmark measures its own overhead."""

from __future__ import annotations

from typing import List, Optional

import numpy as np

from edgeprune_device.errors import InputError
from edgeprune_device.output import check_size
from edgeprune_device.runtimes import Model, RuntimeSettings, Session, Shapes

AUTOMATIC = 0


def available() -> Optional[str]:
    """None: this runtime can always run."""
    return None


def open(model: Model, settings: RuntimeSettings) -> Session:
    """Open a session for the shapes in `settings.shapes`, without reading the model.

    Raises:
        InputError: The shapes are missing.
    """
    if settings.shapes is None:
        raise InputError(
            "runtime null: input and output shapes missing; pass the bundle's shapes, because null reads no model"
        )
    return NullSession(settings.shapes)


class NullSession(Session):
    """A session that returns the same zeros every time.

    Args:
        shapes: See `edgeprune_device.runtimes.Shapes`.
    """

    name = "null"
    description = "null (no inference; measures the benchmark itself)"

    def __init__(self, shapes: Shapes) -> None:
        self.input_shape = tuple(shapes[0])
        for shape in shapes[1]:
            check_size(shape, "the bundle's manifest")
        self._outputs = [np.zeros(shape, dtype=np.float32) for shape in shapes[1]]

    def infer(self, x: np.ndarray) -> List[np.ndarray]:
        """Return zeros.

        Raises:
            InputError: `x` does not have the model's input shape.
        """
        self._check(x)
        return self._outputs
