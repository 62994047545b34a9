"""prune: the gate of every build, the cut network against the masked one."""

import pytest

from edgeprune.pruning import prune, surgery
from edgeprune.pruning.channels import trace

from ..plans import random_plan
from ..small import network


@pytest.mark.parametrize("layer", ["model.4.cv1.conv", "model.22.cv3.0.2"])
def test_the_gate_of_a_build_notices_a_wrong_or_broken_cut(layer):
    model = network(width=0.125)
    channels = trace(model)
    plan = random_plan(channels)
    assert prune.oracle(model, surgery.apply(plan, model, channels), plan, channels) <= prune.ORACLE
    for damage in (lambda w: w.mul_(1.01), lambda w: w.fill_(float("nan"))):
        pruned = surgery.apply(plan, model, channels)
        damage(pruned.get_submodule(layer).weight.data)
        assert not prune.oracle(model, pruned, plan, channels) <= prune.ORACLE
