"""budget: the budget is met within rounding, floors and ties, with the best choice of channels."""

import itertools

import numpy as np
import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.option import as_flags

from edgeprune.model.count import count
from edgeprune.pruning import budget, cost
from edgeprune.pruning.budget import Budget
from edgeprune.pruning.plan import PrunePlan
from edgeprune.pruning.surgery import apply

from ..small import network


def size(channels, keep):
    """The remaining share of each cost for the kept channels."""
    kept = np.array([keep[g.atoms].sum() for g in channels.groups], dtype=float)
    full = np.array([len(g.atoms) for g in channels.groups], dtype=float)
    counted = {kind: cost.of(kind, channels) for kind in ("macs", "params")}
    return {kind: float(c.of(kept) / c.of(full)) for kind, c in counted.items()}


def plain(channels, keep):
    """Check the constraints of every plan: rounding, floors, frozen groups, ties."""
    for group in channels.groups:
        kept = int(keep[group.atoms].sum())
        if group.frozen:
            assert kept == len(group.atoms)
        else:
            assert kept % 8 == 0 or kept == len(group.atoms)
            assert kept >= budget.FLOOR * len(group.atoms)
    for tie in channels.ties:
        assert len({int(keep[channels.groups[g].atoms].sum()) for g in tie}) == 1


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.1, 0.2, 0.3, 0.5])
def test_the_ratio_is_met_in_steps_of_eight(yolo, ratio):
    channels, scores = yolo
    keep = budget.choose(channels, scores, Budget("ratio", ratio), multiple=8)
    assert abs((~keep).sum() / channels.prunable - ratio) <= 0.005
    plain(channels, keep)


def test_the_cheapest_channels_of_a_group_are_removed(yolo):
    channels, scores = yolo
    keep = budget.choose(channels, scores, Budget("ratio", 0.2), multiple=8)
    cut = [g for g in channels.groups if not keep[g.atoms].all()]
    assert cut
    for group in cut:
        assert scores[group.atoms[~keep[group.atoms]]].max() <= scores[group.atoms[keep[group.atoms]]].min()


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3])
def test_size_falls_with_the_channels(yolo, ratio):
    """It falls even if the scores prefer channels of the cheap layers."""
    channels, _ = yolo
    costs = np.zeros(channels.atoms)
    for name, positions in channels.positions.items():
        np.add.at(costs, channels.out[name], positions)
    keep = budget.choose(channels, costs**2, Budget("ratio", ratio), multiple=8)
    assert max(size(channels, keep).values()) <= 1 - budget.SHARE * ratio


def test_the_knapsack_is_exact():
    rng = np.random.default_rng(0)
    for _ in range(20):
        units = []
        for _ in range(4):
            options = np.array([[32], [24], [16], [8]])
            loss = np.concatenate([[0], np.cumsum(rng.random(3))])
            units.append(budget.Unit((0,), options, loss))
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
def test_a_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(InputError, match=r"^ratio: .* expected a number in \[0, 1\)"):
        Budget("ratio", ratio)


def test_a_ratio_beyond_the_floors_is_refused_with_the_largest_possible(yolo):
    with pytest.raises(InputError, match=r"largest ratio for this model is 0\.\d\d"):
        budget.choose(*yolo, Budget("ratio", 0.95), multiple=8)


def test_an_atom_with_an_infinite_score_is_kept(yolo):
    channels, scores = yolo
    wide = (g for g in channels.groups if not g.frozen and len(g.atoms) == 64)
    group = next(g for g in wide if np.isfinite(scores[g.atoms]).all())
    scores = scores.copy()
    scores[group.atoms[:60]] = np.inf
    keep = budget.choose(channels, scores, Budget("ratio", 0.5), multiple=8)
    assert keep[group.atoms[:60]].all()


# -- MACs and parameters ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("value", [1.0, *(pytest.param(v, marks=pytest.mark.slow) for v in (0.9, 0.8)), 0.6, 0.4])
def test_a_budget_is_met_from_below_within_two_percent(yolo, kind, value, uniform):
    """The cost is measured on the pruned network, not taken from the cost model of the solver."""
    channels, scores = yolo
    model = network()
    keep = budget.choose(channels, scores, Budget(kind, value), multiple=8, uniform=uniform)
    plain(channels, keep)
    before = count(model, (64, 64))
    after = count(apply(PrunePlan.of(channels, keep, budget="", criterion=""), model, channels), (64, 64))
    name = {"macs": "macs", "params": "parameters"}[kind]
    left = getattr(after, name) / getattr(before, name)
    assert value * (1 - 0.02) <= left <= value * 1.002


def test_the_solution_is_close_to_the_optimum():
    """The reference is the best of all combinations for a small network whose costs are products of adjacent widths."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(20):
        units, options = [], np.array([32, 24, 16, 8])
        for g in range(5):
            loss = np.concatenate([[0], np.cumsum(np.sort(rng.random(3) ** 3))])
            units.append(budget.Unit((g,), options[:, None], loss))
        made, read = np.eye(5)[1:], np.eye(5)[:4]
        price = cost.CostModel(rng.random(4), np.zeros(4), np.zeros(4), 0.0, made, read, np.zeros(4))
        channels = type("C", (), {"groups": [type("G", (), {"atoms": np.arange(32)})] * 5})
        picked = budget._by_cost(channels, units, price, 0.5)
        goal = 0.5 * price.of(np.full(5, 32.0))
        total = sum(u.loss[i] for u, i in zip(units, picked))
        assert price.of(np.array([options[i] for i in picked], dtype=float)) <= goal
        best = min(
            sum(u.loss[i] for u, i in zip(units, c))
            for c in itertools.product(range(4), repeat=5)
            if price.of(np.array([options[i] for i in c], dtype=float)) <= goal
        )
        worst = max(worst, total / best)
    assert worst <= 1.1


def test_at_equal_scores_expensive_channels_are_removed_first(yolo):
    """With equal scores for all channels, the MACs fall with fewer removed channels than at random."""
    channels, _ = yolo
    same = np.ones(channels.atoms)
    ours = budget.choose(channels, same, Budget("macs", 0.7), multiple=8)
    even = budget.choose(channels, same, Budget("macs", 0.7), multiple=8, uniform=True)
    assert (~ours).sum() < (~even).sum()


def test_steps_multiply_to_the_budget():
    left = 1.0
    for i in range(3):
        left *= Budget("macs", 0.6).step(left, 3 - i).value
    assert left == pytest.approx(0.6)
    left = 1.0
    for i in range(3):
        left *= 1 - Budget("ratio", 0.3).step(left, 3 - i).value
    assert left == pytest.approx(0.7)


@pytest.mark.parametrize("kind", ["macs", "params", "latency"])
@pytest.mark.parametrize("value", [0.0, -0.5, 1.01, float("nan")])
def test_a_budget_outside_its_range_is_refused(kind, value):
    option = {"latency": "latency_ratio"}.get(kind, kind)
    with pytest.raises(InputError, match=rf"^{option}: .* expected a number in \(0, 1\]"):
        Budget(kind, value)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_milliseconds_outside_their_range_are_refused(value):
    with pytest.raises(InputError, match=r"^latency_ms: .* expected a number above 0"):
        Budget("latency_ms", value)


def test_exactly_one_budget_is_required():
    options = {"ratio": None, "macs": None, "latency_ratio": None}
    assert Budget.asked(**{**options, "latency_ratio": 0.5}) == Budget("latency", 0.5)
    with pytest.raises(InputError, match=r"give exactly one of ratio, macs, latency_ratio.* \(found 0\)"):
        Budget.asked(**options)
    with (
        as_flags(),
        pytest.raises(InputError, match=r"give exactly one of --ratio, --macs, --latency-ratio.* \(found 2\)"),
    ):
        Budget.asked(**{**options, "ratio": 0.2, "macs": 0.5})


def test_a_cost_below_the_floors_is_refused_with_the_smallest_possible(yolo):
    with pytest.raises(InputError, match=r"for this model is 0\.\d\d$"):
        budget.choose(*yolo, Budget("macs", 0.01), multiple=8)
