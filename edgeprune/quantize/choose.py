"""Chooses the calibration method with the best mAP."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import onnx
from edgeprune_device.errors import InputError

from edgeprune.quantize.calibrate import METHODS

__all__ = ["Choice", "choose"]

#: mAP on a few dozen images varies by this much by chance: on the demo, `max` won by 0.004 on 32 images and lost by
#: 0.003 on 400. Another method must beat the first by more.
NOISE = 0.005


@dataclass(frozen=True)
class Choice:
    """The chosen method, its model and the scores of all methods.

    Example: `Choice("mse", model, {"mse": 0.512, "percentile": 0.509, "entropy": 0.498, "max": 0.497})`.

    Attributes:
        method: The chosen method.
        model: The model that was quantized with it.
        scores: Method -> mAP50-95.
    """

    method: str
    model: onnx.ModelProto
    scores: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The figures, without the model."""
        return {"method": self.method, "scores": dict(self.scores)}


def choose(
    make: Callable[[str], onnx.ModelProto],
    score: Callable[[onnx.ModelProto], float],
    methods: Iterable[str] = tuple(METHODS),
) -> Choice:
    """Quantize once with each calibration method and keep the model with the best score.

    A method other than the first is chosen only if its score is better by more than NOISE.

    Args:
        make: Method -> quantized model, such as `lambda method: to_int8(model, ranges, method=method)`.
        score: Model -> mAP on images that are used neither for calibration nor for the final validation. A figure that
            decided the choice cannot validate it.
        methods: The methods to try.

    Raises:
        InputError: No method is given, or no score is a number.
    """
    tried: dict[str, float] = {}
    best: tuple[str, onnx.ModelProto] | None = None
    to_beat = float("-inf")
    for method in methods:
        model = make(method)
        tried[method] = float(score(model))
        if tried[method] > to_beat:  # never for NaN
            to_beat = tried[method] + (0 if best else NOISE)
            best = (method, model)
    if best is None:
        raise InputError(
            f"calibration method: no score is a number (found {tried or 'no method'}); label boxes in the training "
            "images held out for this choice"
        )
    return Choice(*best, tried)
