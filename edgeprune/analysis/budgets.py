"""A sweep of budgets: for each, the network is pruned, compensated and measured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from edgeprune_device.errors import InputError
from edgeprune_device.progress import Progress
from edgeprune_device.vision.accuracy import Accuracy, Matches
from torch import nn

from edgeprune.analysis.findings import Advice, AnalysisRequest, BudgetPoint
from edgeprune.data.samples import Samples
from edgeprune.model.count import count
from edgeprune.pruning import budget, prune
from edgeprune.pruning.budget import Budget, Unit
from edgeprune.pruning.channels import Channels
from edgeprune.pruning.layers import Floats
from edgeprune.pruning.plan import PrunePlan

#: The budgets of a sweep; the sweep adds a half step beyond the recommended one.
BUDGETS = {
    "macs": (0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
    "params": (0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
    "ratio": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
}

_RESAMPLES = 500

#: Returns a network's accuracy on the measuring images, and the matches behind it.
Measure = Callable[[nn.Module], tuple[Accuracy, Matches]]


class BudgetSweep:
    """The unpruned network and its scores, from which `run` prunes to each budget.

    Args:
        model: the unpruned network.
        channels: its channels and groups.
        scores: score of each channel, in the criterion's unit.
        units: the decisions of a plan.
        ask: the analysis request.
        samples: images for compensation.
        measure: returns the accuracy of a network, and the matches behind it.

    Attributes:
        uncut: cost of the unpruned network.
        accuracy: accuracy of the unpruned network.
    """

    def __init__(
        self, model: nn.Module, channels: Channels, scores: Floats, units: list[Unit], ask: AnalysisRequest,
        samples: Samples, measure: Measure,
    ) -> None:  # fmt: skip
        self._model, self._channels, self._scores, self._units = model, channels, scores, units
        self._ask, self._samples, self._measure = ask, samples, measure
        self.uncut = count(model, ask.imgsz)
        self.accuracy, matches = measure(model)
        rng = np.random.default_rng(0)
        self._drawn = rng.integers(matches.pictures, size=(_RESAMPLES, matches.pictures))
        self._reference = self._resampled(matches)

    def run(self, kind: str, progress: Progress) -> tuple[list[BudgetPoint], list[str]]:
        """Prune and measure every budget of a kind, and a half step beyond the recommended one.

        Args:
            kind: macs, params or ratio.
            progress: receives the fraction done and a line of text.

        Returns:
            The points from the loosest budget to the tightest, and the budgets that cannot be reached, each with its
            reason.

        Raises:
            InputError: even the loosest budget cannot be reached.
        """
        values = BUDGETS[kind]
        points: list[BudgetPoint] = []
        unreached: list[str] = []
        for i, value in enumerate(values):
            asked = Budget(kind, value)
            progress(i / (len(values) + 1), f"{asked}: pruning, compensating, measuring")
            try:
                points.append(self._point(asked))
            except InputError as error:
                if not points:
                    raise
                unreached.append(f"{asked}: {error}")
        good = Advice.of(points).recommended
        place = 0 if good is None else points.index(good) + 1
        if place < len(points) and points[place].kept is not None:  # half a step beyond the recommended point
            uncut = 0.0 if kind == "ratio" else 1.0
            asked = Budget(kind, round(((good.value if good else uncut) + points[place].value) / 2, 3))
            progress(len(values) / (len(values) + 1), f"{asked}: pruning, compensating, measuring")
            points.insert(place, self._point(asked))
        return points, unreached

    def _point(self, asked: Budget) -> BudgetPoint:
        keep = budget.solve(self._channels, self._scores, self._units, asked)
        plan = PrunePlan.of(self._channels, keep, budget=str(asked), criterion=self._ask.criterion)
        cut = prune.cut(self._model, self._channels, plan, self._samples).model
        size = count(cut, self._ask.imgsz)
        accuracy, matches = self._measure(cut)
        kept, interval = None, None
        if self.accuracy.map50_95 and accuracy.map50_95 is not None:
            kept = accuracy.map50_95 / self.accuracy.map50_95
            with np.errstate(divide="ignore", invalid="ignore"):
                drawn = self._resampled(matches) / self._reference
            low, high = np.nanpercentile(np.where(np.isfinite(drawn), drawn, np.nan), [2.5, 97.5])
            interval = (float(low), float(high))
        return BudgetPoint(
            str(asked), asked.value, size.parameters, size.macs, size.channels, plan.removed,
            float(self._scores[~keep].sum()), accuracy.map50, accuracy.map50_95, kept, interval,
        )  # fmt: skip

    def _resampled(self, matches: Matches) -> Floats:
        """(resamples,) mAP50-95 by bootstrap; every network is measured on the same resampled images."""
        scores = (matches.accuracy(index).map50_95 for index in self._drawn)
        return np.array([np.nan if value is None else value for value in scores])
