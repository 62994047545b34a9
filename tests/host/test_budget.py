"""budget: the ratio is met, inside rounding, floors and ties; and the choice is the best there is."""

import itertools

import numpy as np
import pytest
from edgeprune_device.errors import InputError

from edgeprune import budget, criteria
from edgeprune.channels import trace

from .conftest import network


@pytest.fixture(scope="module")
def yolo():
    model = network()
    channels = trace(model)
    return channels, criteria.load("bn_scale")(model, channels, None)


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.1, 0.2, 0.3, 0.5])
def test_the_ratio_is_met_in_steps_of_eight(yolo, ratio):
    channels, scores = yolo
    keep = budget.choose(channels, scores, ratio, multiple=8)
    assert abs((~keep).sum() / channels.prunable - ratio) <= 0.005
    for group in channels.groups:
        kept = int(keep[group.atoms].sum())
        if group.frozen:
            assert kept == len(group.atoms)
        else:
            assert kept % 8 == 0 or kept == len(group.atoms)
            assert kept >= budget.FLOOR * len(group.atoms)
    for tie in channels.ties:
        assert len({int(keep[channels.groups[g].atoms].sum()) for g in tie}) == 1


def test_the_cheapest_of_a_group_go(yolo):
    channels, scores = yolo
    keep = budget.choose(channels, scores, 0.2, multiple=8)
    cut = [g for g in channels.groups if not keep[g.atoms].all()]
    assert cut
    for group in cut:
        assert scores[group.atoms[~keep[group.atoms]]].max() <= scores[group.atoms[keep[group.atoms]]].min()


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3])
def test_size_falls_with_the_channels(yolo, ratio):
    """Also where the scores would take every channel from the cheap layers."""
    channels, _ = yolo
    costs = np.zeros(channels.atoms)
    for name, positions in channels.positions.items():
        np.add.at(costs, channels.out[name], positions)
    keep = budget.choose(channels, costs**2, ratio, multiple=8)
    assert budget.size(channels, keep).max() <= 1 - budget.SHARE * ratio


def test_the_knapsack_is_exact():
    rng = np.random.default_rng(0)
    for _ in range(20):
        units = []
        for _ in range(4):
            options = np.array([32, 24, 16, 8])
            loss = np.concatenate([[0], np.cumsum(rng.random(3))])
            units.append(budget._Unit((0,), options, loss, 32 - options))
        goal = int(rng.integers(1, 10)) * 8
        picked = budget._knapsack(units, goal, np.zeros(4))
        best = min(
            sum(u.loss[i] for u, i in zip(units, combination))
            for combination in itertools.product(range(4), repeat=4)
            if sum(u.removed[i] for u, i in zip(units, combination)) == goal
        )
        assert sum(u.loss[i] for u, i in zip(units, picked)) == pytest.approx(best)
        assert sum(u.removed[i] for u, i in zip(units, picked)) == goal


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_a_ratio_outside_is_refused(yolo, ratio):
    with pytest.raises(InputError, match="outside"):
        budget.choose(*yolo, ratio, multiple=8)


def test_more_than_the_floors_allow_is_refused_with_the_largest(yolo):
    with pytest.raises(InputError, match=r"largest ratio of this model is 0\.\d\d"):
        budget.choose(*yolo, 0.95, multiple=8)


def test_an_atom_of_infinite_score_stays(yolo):
    channels, scores = yolo
    wide = (g for g in channels.groups if not g.frozen and len(g.atoms) == 64)
    group = next(g for g in wide if np.isfinite(scores[g.atoms]).all())
    scores = scores.copy()
    scores[group.atoms[:60]] = np.inf
    keep = budget.choose(channels, scores, 0.5, multiple=8)
    assert keep[group.atoms[:60]].all()
