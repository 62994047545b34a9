"""Which layers leave INT8 first, when INT8 loses too much."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgeprune.quantize.sensitivity import LayerSensitivity

__all__ = ["LEAST_SHARE", "Ladder"]

#: Of all multiply-accumulates, what must stay in INT8: with less, INT8 would be a name only.
LEAST_SHARE = 0.9
#: A layer is not chosen for being tiny alone: each fallback costs two changes of type.
LEAST_MACS = 0.003


@dataclass(frozen=True)
class Ladder:
    """Rung 0 leaves every layer in INT8; each further rung takes more out, the most error per MAC first.

    Errors of layers add in quadrature (divergence.py), so their squares are compared. fallbacks: in that order.
    rungs: how many of them each rung takes: all small numbers, then half as many again at a time.

    Example: `Ladder.of(sensitivities, share=0.98).layers(2)` -> `("model.2.cv1.conv", "model.2.cv2.conv")`.
    """

    fallbacks: tuple[LayerSensitivity, ...]
    rungs: tuple[int, ...]

    @classmethod
    def of(cls, sensitivities: Iterable[LayerSensitivity], share: float, least: float = LEAST_SHARE) -> Ladder:
        """share: of the MACs that are INT8 without any fallback; no rung has less than `least`."""
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
        """Why each layer of the rung fell back: what it alone costs, and the work it stands for."""
        chosen = self.fallbacks[: self.rungs[rung]]
        return [{"layer": s.layer, "disagreement": s.error, "share_of_macs": s.macs_share} for s in chosen]
