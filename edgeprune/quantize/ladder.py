"""The order of layer fallback: the layers that leave INT8 first if INT8 loses too much."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgeprune.quantize.sensitivity import LayerSensitivity

__all__ = ["LEAST_SHARE", "Ladder"]

#: The share of the MACs that must stay in INT8; with less, the file would be INT8 in name only.
LEAST_SHARE = 0.9
#: The least share of the MACs that a layer counts with, because each fallback costs two type conversions.
LEAST_MACS = 0.003


@dataclass(frozen=True)
class Ladder:
    """The rungs of layer fallback. Rung 0 keeps every layer in INT8; each further rung moves more layers to float,
    starting with the most error per MAC.

    The errors of layers add in quadrature (divergence.py), so their squares are compared.

    Example: `Ladder.of(sensitivities, share=0.98).layers(2)` -> `("model.2.cv1.conv", "model.2.cv2.conv")`.

    Attributes:
        fallbacks: The layers, in the order in which they fall back.
        rungs: The number of float layers on each rung: at first one more each time, later half as many again.
    """

    fallbacks: tuple[LayerSensitivity, ...]
    rungs: tuple[int, ...]

    @classmethod
    def of(cls, sensitivities: Iterable[LayerSensitivity], share: float, least: float = LEAST_SHARE) -> Ladder:
        """Make the ladder.

        Args:
            sensitivities: The layers that may fall back.
            share: The share of the MACs that is INT8 without any fallback, 0..1.
            least: The share that every rung keeps in INT8.
        """
        order = sorted(sensitivities, key=lambda s: -(s.error**2) / max(s.macs_share, LEAST_MACS))
        fallbacks = []
        for candidate in order:
            if share - candidate.macs_share >= least:
                fallbacks.append(candidate)
                share -= candidate.macs_share
        rungs, count = [0], 0
        while count < len(fallbacks):
            count = min(max(count + 1, count * 3 // 2), len(fallbacks))
            rungs.append(count)
        return cls(tuple(fallbacks), tuple(rungs))

    def layers(self, rung: int) -> tuple[str, ...]:
        """The layers that are float on a rung."""
        return tuple(s.layer for s in self.fallbacks[: self.rungs[rung]])

    def to_json(self, rung: int) -> list[dict[str, Any]]:
        """The float layers of a rung, each with its share of the MACs and its error when it alone is INT8."""
        chosen = self.fallbacks[: self.rungs[rung]]
        return [{"layer": s.layer, "disagreement": s.error, "share_of_macs": s.macs_share} for s in chosen]
