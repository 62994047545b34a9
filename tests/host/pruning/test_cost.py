"""cost: what is left, counted from the widths alone, is what the cut network has."""

import numpy as np
import pytest

from edgeprune.model.count import count
from edgeprune.pruning import budget, cost
from edgeprune.pruning.budget import Budget
from edgeprune.pruning.plan import PrunePlan
from edgeprune.pruning.surgery import apply

from ..small import network


def test_the_cost_counts_as_count_does(yolo):
    channels, scores = yolo
    model = network()
    keep = budget.choose(channels, scores, Budget("ratio", 0.3), multiple=8)
    after = count(apply(PrunePlan.of(channels, keep, budget="", criterion=""), model, channels), (64, 64))
    kept = np.array([keep[g.atoms].sum() for g in channels.groups], dtype=float)
    assert cost.macs(channels).of(kept) == after.macs
    assert cost.params(channels).of(kept) == pytest.approx(after.parameters, rel=1e-3)
