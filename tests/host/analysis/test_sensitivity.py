"""sensitivity: group by group, relations that hold whatever the weights are."""

import copy

import numpy as np
import pytest
import torch

from edgeprune.analysis import sensitivity
from edgeprune.model.head import has_one_to_one
from edgeprune.pruning import budget
from edgeprune.pruning.channels import trace
from edgeprune.pruning.features import moments

from ..small import network


def pictures(count=8, size=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, size // 8, size // 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


def hidden(channels):
    """The atoms between the two convolutions of a bottleneck."""
    group = next(g for g in channels.groups if g.producers[:1] == ("model.4.m.0.cv1.conv",))
    assert group.consumers == ("model.4.m.0.cv2.conv",) and not group.frozen
    return group.atoms


def moved(model, channels, gone, *, repaired=True):
    """Divergence when the atoms `gone` go."""
    keep = np.ones(channels.atoms, dtype=bool)
    keep[gone] = False
    seen = moments(model, pictures(), sensitivity._solvable(model, channels)) if repaired else {}
    trial = sensitivity.alone(model, channels, keep, seen)
    judges = pictures(4, seed=1)
    return sensitivity.divergence(sensitivity.predictions(model, judges), sensitivity.predictions(trial, judges))


def test_nothing_cut_moves_nothing_and_more_moves_more(small):
    channels = trace(small)
    atoms = hidden(channels)
    found = [moved(small, channels, atoms[:count]) for count in (0, 2, 6, len(atoms))]
    assert found[0] == 0
    assert 0 < found[1] < found[2] < found[3]


def test_a_channel_that_nobody_reads_costs_nothing(small):
    channels = trace(small)
    atoms = hidden(channels)
    useful = moved(small, channels, atoms[:2])
    with torch.no_grad():
        small.get_submodule("model.4.m.0.cv2.conv").weight[:, :2] = 0
    assert moved(small, channels, atoms[:2]) < 1e-6 * useful


def test_what_another_channel_can_stand_in_for_costs_next_to_nothing(small):
    """Only because the readers are re-solved: silenced alone, the twin is missed."""
    channels = trace(small)
    atoms = hidden(channels)
    made, norm = (small.get_submodule(f"model.4.m.0.cv1.{part}") for part in ("conv", "bn"))
    with torch.no_grad():
        for tensor in (made.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor[1] = tensor[0]
    assert moved(small, channels, atoms[1:2]) < 0.02 * moved(small, channels, atoms[1:2], repaired=False)


def test_the_means_of_the_outputs_are_kept(small):
    channels = trace(small)
    keep = np.ones(channels.atoms, dtype=bool)
    keep[hidden(channels)] = False  # all: the weights can do nothing, the batch norm behind can
    seen = moments(small, pictures(), sensitivity._solvable(small, channels))
    trial = sensitivity.alone(small, channels, keep, seen)
    conv, norm = (trial.get_submodule(f"model.4.m.0.cv2.{part}") for part in ("conv", "bn"))
    assert not conv.weight.any()
    before, weight = small.get_submodule("model.4.m.0.cv2.bn"), small.get_submodule("model.4.m.0.cv2.conv").weight
    mean = weight.detach().flatten(1).double() @ seen["model.4.m.0.cv2.conv"].mean
    np.testing.assert_allclose(before.running_mean - norm.running_mean, mean, rtol=1e-4, atol=1e-6)


def test_the_model_is_left_as_it_was(small):
    before = copy.deepcopy(small.state_dict())
    channels = trace(small)
    moved(small, channels, hidden(channels))
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


@pytest.mark.parametrize("config", ["yolov8n.yaml", "yolov10n.yaml", "yolo26n.yaml"])
def test_every_head(config):
    """With bins, end to end, end to end without bins: the branch that predicts counts, the other does not."""
    model = network(config, width=0.125)
    head = model.model[-1]
    judges = pictures(2)
    before = sensitivity.predictions(model, judges)
    assert before["scores"].shape[:2] == (2, 3) and before["boxes"].shape[:2] == (2, 4 * head.reg_max)
    assert sensitivity.divergence(before, sensitivity.predictions(model, judges)) == 0
    if has_one_to_one(model):
        idle = copy.deepcopy(model)
        idle.model[-1].cv3[0][-1].bias.data += 1
        assert sensitivity.divergence(before, sensitivity.predictions(idle, judges)) == 0
    for tower in ("cv2", "cv3"):
        changed = copy.deepcopy(model)
        tower = getattr(changed.model[-1], f"one2one_{tower}" if has_one_to_one(model) else tower)
        tower[0][-1].weight.data *= 0.5
        assert sensitivity.divergence(before, sensitivity.predictions(changed, judges)) > 0


def test_every_unit_is_reported_once_in_the_order_of_the_network(small):
    channels = trace(small)
    scores = np.random.default_rng(0).random(channels.atoms)
    units = budget.units(channels, scores, 8)
    found = sensitivity.sensitivity(small, channels, scores, units, pictures(), pictures(2, seed=1))
    assert sorted(g.width for g in found) == sorted(int(u.options[0].sum()) for u in units)
    order = list(channels.out)
    firsts = [order.index(g.layers[0]) for g in found]
    assert firsts == sorted(firsts)
    halves = next(g for g in found if g.layers[0] == "model.2.cv1.conv")  # of the chunk: one decision
    assert halves.width == small.get_submodule("model.2.cv1.conv").out_channels
    for group in found:
        assert 0 < group.macs < 1
        narrow = group.left == group.width
        assert (group.divergence is None) == narrow and (narrow or group.divergence > 0)
    assert any(g.divergence is None for g in found) and any(g.divergence for g in found)
