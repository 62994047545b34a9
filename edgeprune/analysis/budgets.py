"""A ladder of budgets: for each, the network is pruned, compensated and measured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from edgeprune_device.errors import InputError
from edgeprune_device.vision.accuracy import Accuracy, Matches
from torch import nn

from edgeprune.analysis.findings import Advice, Rung
from edgeprune.data.samples import Samples
from edgeprune.model.count import count
from edgeprune.pruning import budget, prune
from edgeprune.pruning.budget import Budget, Unit
from edgeprune.pruning.channels import Channels
from edgeprune.pruning.plan import PrunePlan

#: The budgets of the ladder; a half step is added beyond the recommended one.
LADDERS = {
    "macs": (0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
    "params": (0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
    "ratio": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
}

_RESAMPLES = 500

ProgressCallback = Callable[[float, str], None]

#: Returns a network's accuracy on the measuring images, and the matches behind it.
Measure = Callable[[nn.Module], tuple[Accuracy, Matches]]


class BudgetLadder:
    """The uncut network and its scores, from which the network of every budget is cut.

    Args:
        model: the uncut network.
        channels: its channels and groups.
        scores: score of each channel, in the criterion's unit.
        units: the decisions of a plan.
        criterion: name of the importance criterion.
        multiple: channel multiple.
        imgsz: network input, px.
        samples: images to compensate with.
        measure: returns the accuracy of a network, and the matches behind it.

    Attributes:
        uncut: cost of the uncut network.
        accuracy: accuracy of the uncut network.
    """

    def __init__(
        self, model: nn.Module, channels: Channels, scores: np.ndarray, units: list[Unit], criterion: str,
        multiple: int, imgsz: int, samples: Samples, measure: Measure,
    ) -> None:  # fmt: skip
        self._model, self._channels, self._scores, self._units = model, channels, scores, units
        self._criterion, self._multiple, self._imgsz = criterion, multiple, imgsz
        self._samples, self._measure = samples, measure
        self.uncut = count(model, (imgsz, imgsz))
        self.accuracy, matches = measure(model)
        rng = np.random.default_rng(0)
        self._drawn = rng.integers(matches.pictures, size=(_RESAMPLES, matches.pictures))
        self._reference = self._resampled(matches)

    def climb(self, kind: str, progress: ProgressCallback) -> tuple[list[Rung], list[str]]:
        """Prune and measure every budget of a kind, and a half step beyond the recommended one.

        Args:
            kind: macs, params or ratio.
            progress: receives the fraction done and a line of text.

        Returns:
            The rungs from the smallest cut to the largest, and the budgets that cannot be reached, each with its
            reason.

        Raises:
            InputError: not even the smallest cut can be reached.
        """
        values, rungs, unreached = LADDERS[kind], [], []
        for i, value in enumerate(values):
            asked = Budget(kind, value)
            progress(i / (len(values) + 1), f"{asked}: cutting, compensating, measuring")
            try:
                rungs.append(self._rung(asked))
            except InputError as error:
                if not rungs:
                    raise
                unreached.append(f"{asked}: {error}")
        good = Advice.of(rungs).recommended
        place = 0 if good is None else rungs.index(good) + 1
        if place < len(rungs) and rungs[place].kept is not None:  # half a step beyond the recommended rung
            uncut = 0.0 if kind == "ratio" else 1.0
            asked = Budget(kind, round(((good.value if good else uncut) + rungs[place].value) / 2, 3))
            progress(len(values) / (len(values) + 1), f"{asked}: cutting, compensating, measuring")
            rungs.insert(place, self._rung(asked))
        return rungs, unreached

    def _rung(self, asked: Budget) -> Rung:
        keep = budget.solve(self._channels, self._scores, self._units, asked)
        plan = PrunePlan.of(self._channels, keep, budget=str(asked), criterion=self._criterion)
        cut = prune.cut(self._model, self._channels, plan, self._samples).model
        size = count(cut, (self._imgsz, self._imgsz))
        accuracy, matches = self._measure(cut)
        kept = interval = None
        if self.accuracy.map50_95:
            kept = accuracy.map50_95 / self.accuracy.map50_95
            with np.errstate(divide="ignore", invalid="ignore"):
                drawn = self._resampled(matches) / self._reference
            low, high = np.nanpercentile(np.where(np.isfinite(drawn), drawn, np.nan), [2.5, 97.5])
            interval = (float(low), float(high))
        return Rung(
            str(asked), asked.value, size.parameters, size.macs, size.channels, plan.removed,
            float(self._scores[~keep].sum()), accuracy.map50, accuracy.map50_95, kept, interval,
        )  # fmt: skip

    def _resampled(self, matches: Matches) -> np.ndarray:
        """Return (resamples,) mAP50-95 by bootstrap; every network is measured on the same resampled images."""
        found = (matches.accuracy(index).map50_95 for index in self._drawn)
        return np.array([np.nan if value is None else value for value in found])
