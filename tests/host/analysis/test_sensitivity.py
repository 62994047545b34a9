"""sensitivity: relations that hold for any weights, group by group."""

import copy

import numpy as np
import pytest
import torch

from edgeprune.analysis import sensitivity
from edgeprune.model.head import HEADS, ONE_TO_ONE, select, two_heads
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
    """The output divergence after the atoms `gone` have been removed."""
    keep = np.ones(channels.atoms, dtype=bool)
    keep[gone] = False
    seen = moments(model, pictures(), sensitivity._solvable(model, channels)) if repaired else {}
    trial = sensitivity.alone(model, channels, keep, seen)
    judges = pictures(4, seed=1)
    return sensitivity.divergence(sensitivity.predictions(model, judges), sensitivity.predictions(trial, judges))


def test_divergence_is_zero_without_a_cut_and_grows_with_it(small):
    channels = trace(small)
    atoms = hidden(channels)
    divergences = [moved(small, channels, atoms[:count]) for count in (0, 2, 6, len(atoms))]
    assert divergences[0] == 0
    assert 0 < divergences[1] < divergences[2] < divergences[3]


def test_unread_channel_costs_nothing(small):
    channels = trace(small)
    atoms = hidden(channels)
    useful = moved(small, channels, atoms[:2])
    with torch.no_grad():
        small.get_submodule("model.4.m.0.cv2.conv").weight[:, :2] = 0
    assert moved(small, channels, atoms[:2]) < 1e-6 * useful


def test_duplicated_channel_costs_almost_nothing(small):
    """Compensation moves its weight to the twin; masking alone loses it."""
    channels = trace(small)
    atoms = hidden(channels)
    made, norm = (small.get_submodule(f"model.4.m.0.cv1.{part}") for part in ("conv", "bn"))
    with torch.no_grad():
        for tensor in (made.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor[1] = tensor[0]
    assert moved(small, channels, atoms[1:2]) < 0.02 * moved(small, channels, atoms[1:2], repaired=False)


def test_compensation_keeps_the_means_of_the_outputs(small):
    channels = trace(small)
    keep = np.ones(channels.atoms, dtype=bool)
    keep[hidden(channels)] = False  # all atoms: no weight is left to compensate, only the batch norm
    seen = moments(small, pictures(), sensitivity._solvable(small, channels))
    trial = sensitivity.alone(small, channels, keep, seen)
    conv, norm = (trial.get_submodule(f"model.4.m.0.cv2.{part}") for part in ("conv", "bn"))
    assert not conv.weight.any()
    before, weight = small.get_submodule("model.4.m.0.cv2.bn"), small.get_submodule("model.4.m.0.cv2.conv").weight
    mean = weight.detach().flatten(1).double() @ seen["model.4.m.0.cv2.conv"].mean
    np.testing.assert_allclose(before.running_mean - norm.running_mean, mean, rtol=1e-4, atol=1e-6)


def test_sensitivity_does_not_change_the_model(small):
    before = copy.deepcopy(small.state_dict())
    channels = trace(small)
    moved(small, channels, hidden(channels))
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


@pytest.mark.parametrize("which", HEADS)
@pytest.mark.parametrize("config", ["yolov8n.yaml", "yolov10n.yaml", "yolo26n.yaml"])
def test_predictions_come_from_the_head_that_is_exported(config, which):
    """Heads with distance bins, end-to-end, and end-to-end without bins: only the branch that predicts counts."""
    model = network(config, width=0.125)
    if two_heads(model):
        select(model, which)
    head = model.model[-1]
    judges = pictures(2)
    before = sensitivity.predictions(model, judges)
    assert before["scores"].shape[:2] == (2, 3) and before["boxes"].shape[:2] == (2, 4 * head.reg_max)
    assert sensitivity.divergence(before, sensitivity.predictions(model, judges)) == 0
    used, unused = ("one2one_", "") if which == ONE_TO_ONE else ("", "one2one_")
    if two_heads(model):
        idle = copy.deepcopy(model)
        getattr(idle.model[-1], f"{unused}cv3")[0][-1].bias.data += 1
        assert sensitivity.divergence(before, sensitivity.predictions(idle, judges)) == 0
    for tower in ("cv2", "cv3"):
        changed = copy.deepcopy(model)
        tower = getattr(changed.model[-1], f"{used}{tower}" if two_heads(model) else tower)
        tower[0][-1].weight.data *= 0.5
        assert sensitivity.divergence(before, sensitivity.predictions(changed, judges)) > 0


def test_sensitivity_reports_every_unit_once_in_network_order(small):
    channels = trace(small)
    scores = np.random.default_rng(0).random(channels.atoms)
    units = budget.units(channels, scores, 8)
    groups = sensitivity.sensitivity(small, channels, scores, units, pictures(), pictures(2, seed=1))
    assert sorted(g.width for g in groups) == sorted(int(u.options[0].sum()) for u in units)
    order = list(channels.out)
    firsts = [order.index(g.layers[0]) for g in groups]
    assert firsts == sorted(firsts)
    halves = next(g for g in groups if g.layers[0] == "model.2.cv1.conv")  # both halves of the chunk are one decision
    assert halves.width == small.get_submodule("model.2.cv1.conv").out_channels
    for group in groups:
        assert 0 < group.macs < 1
        narrow = group.left == group.width
        assert (group.divergence is None) == narrow and (narrow or group.divergence > 0)
    assert any(g.divergence is None for g in groups) and any(g.divergence for g in groups)
