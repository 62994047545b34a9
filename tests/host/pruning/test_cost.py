"""cost: the cost from the widths alone equals the cost of the pruned network."""

import numpy as np
import pytest

from edgeprune.model import head
from edgeprune.model.count import count
from edgeprune.pruning import budget, cost
from edgeprune.pruning.budget import Budget
from edgeprune.pruning.plan import PrunePlan
from edgeprune.pruning.prune import trace_channels
from edgeprune.pruning.surgery import apply

from ..small import network


def test_the_cost_model_equals_count(yolo):
    channels, scores = yolo
    model = network()
    keep = budget.choose(channels, scores, Budget("ratio", 0.3), multiple=8)
    after = count(apply(PrunePlan.of(channels, keep, budget="", criterion=""), model, channels), (64, 64))
    kept = np.array([keep[g.atoms].sum() for g in channels.groups], dtype=float)
    assert cost.macs(channels).of(kept) == after.macs
    assert cost.params(channels).of(kept) == pytest.approx(after.parameters, rel=1e-3)


@pytest.mark.parametrize("which", head.HEADS)
@pytest.mark.parametrize("config", ["yolov10n.yaml", "yolo26n.yaml"])
def test_the_head_that_is_not_exported_costs_nothing(config, which):
    """Its towers cost nothing and keep their channels; both cost models equal the count of the exported network."""
    model = network(config, width=0.125)
    head.select(model, which)
    channels = trace_channels(model, 64)
    towers = [g for g in channels.groups if g.producers and all(p in channels.idle for p in g.producers)]
    assert towers and all(g.frozen for g in towers)
    keep = budget.choose(channels, np.random.default_rng(0).random(channels.atoms), Budget("macs", 0.6), multiple=4)
    assert all(keep[g.atoms].all() for g in towers)
    cut = apply(PrunePlan.of(channels, keep, budget="", criterion=""), model, channels)
    before, after = count(model, (64, 64)), count(cut, (64, 64))
    assert after.macs <= 0.6 * before.macs < 0.63 * before.macs
    full, kept = (np.array([c[g.atoms].sum() for g in channels.groups], dtype=float) for c in (keep | True, keep))
    for counts, counted in ((full, before), (kept, after)):
        assert cost.macs(channels).of(counts) == counted.macs
        assert cost.params(channels).of(counts) == pytest.approx(counted.parameters, rel=1e-3)
