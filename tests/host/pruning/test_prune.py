"""prune: the gate that compares the pruned network with the masked one."""

import itertools

import pytest

from edgeprune.pruning import prune, surgery
from edgeprune.pruning.budget import Budget
from edgeprune.pruning.channels import trace

from ..plans import random_plan
from ..small import network, short
from .samples import samples


@pytest.mark.parametrize("layer", ["model.4.cv1.conv", "model.22.cv3.0.2"])
def test_the_gate_detects_a_wrong_or_broken_cut(layer):
    model = network(width=0.125)
    channels = trace(model)
    plan = random_plan(channels)
    assert prune.oracle(model, surgery.apply(plan, model, channels), plan, channels) <= prune.ORACLE
    for damage in (lambda w: w.mul_(1.01), lambda w: w.fill_(float("nan"))):
        pruned = surgery.apply(plan, model, channels)
        damage(pruned.get_submodule(layer).weight.data)
        assert not prune.oracle(model, pruned, plan, channels) <= prune.ORACLE


@pytest.mark.parametrize(("criterion", "unit"), [("energy", "layer"), ("taylor", "images")])
def test_progress_moves_within_each_round(criterion, unit):
    """On a large network a round takes minutes, in which the line stood still."""
    seen = []
    ask = prune.PruneRequest(Budget("ratio", 0.2), 8, 96)
    prune.prune_network(
        short(), criterion=criterion, ask=ask, samples=samples(8), progress=lambda done, text: seen.append((done, text))
    )
    fractions = [done for done, _ in seen]
    assert fractions == sorted(fractions) and fractions[0] >= 0 and fractions[-1] <= 1 + 1e-9
    assert max(b - a for a, b in itertools.pairwise(fractions)) < 0.15
    for number in range(1, prune.ROUNDS + 1):
        steps = [text for _, text in seen if text.startswith(f"{criterion}: choosing channels, {number} of 3, ")]
        assert sum(unit in text for text in steps) >= 2, steps
    assert any(text.startswith("compensating, layer ") for _, text in seen)
