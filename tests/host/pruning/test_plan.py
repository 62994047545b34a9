"""plan: complete after a round trip, refused if it does not match the model."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from edgeprune_device.errors import InputError

from edgeprune.pruning import surgery
from edgeprune.pruning.channels import trace
from edgeprune.pruning.plan import PrunePlan

from ..plans import random_plan


def test_a_plan_survives_a_round_trip(small, tmp_path):
    channels = trace(small)
    plan = random_plan(channels)
    plan.save(tmp_path / "plan.json")
    again = PrunePlan.load(tmp_path / "plan.json")
    assert again == plan and again.sha256 == plan.sha256
    np.testing.assert_array_equal(again.mask(channels), plan.mask(channels))
    assert plan.removed == int((~plan.mask(channels)).sum()) > 0
    assert plan.prunable == channels.prunable


def test_two_consecutive_cuts_are_one_plan(small):
    channels = trace(small)
    first = random_plan(channels, share=0.3)
    once = surgery.apply(first, small, channels)
    second = random_plan(trace(once), share=0.3, seed=1)
    in_turn = surgery.apply(second, once, trace(once))
    both = first.then(second)
    at_once = surgery.apply(both, small, channels)
    assert both.removed == int((~both.mask(channels)).sum()) == first.removed + second.removed
    ours, theirs = at_once.state_dict(), in_turn.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_contradicting_layers_are_refused(small):
    channels = trace(small)
    plan = random_plan(channels)
    keep = {**plan.keep, "model.0.bn": [0]}
    with pytest.raises(InputError, match="coupled layer"):
        dataclasses.replace(plan, keep=keep).mask(channels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, r"schema version \(found 99"),
        ({"keep": None}, "not a prune plan"),
        ({"widths": {"a": "b"}}, "not a prune plan"),
    ],
)
def test_invalid_plans_are_refused(small, tmp_path, change, message):
    data = {**random_plan(trace(small)).to_json(), **change}
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=message):
        PrunePlan.load(tmp_path / "plan.json")
