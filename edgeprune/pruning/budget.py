"""The choice of channels under a budget: one optimisation over all groups, with rounding and floors.

The loss of a group that keeps k channels is the sum of its lowest scores. For a budget in MACs, parameters or
milliseconds, the solver seeks the plan with the least total loss among all plans whose cost is at most the budget. The
Lagrangian (loss + price * cost) is minimised group by group until nothing changes, bisection finds the price, and
exchanges between two groups improve the result.

A budget of kind `ratio` removes a fraction of the prunable channels, as closely as the rounding allows. A plan that
removes only the cheapest channels would be smaller on paper but no faster. The parameters and the MACs must therefore
fall at least `SHARE` times as much as the channels, or as close to that as the floors allow. Among these plans, the one
with the least total score is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from edgeprune_device.errors import InputError
from edgeprune_device.option import named

from edgeprune.options import BudgetOptions, declared
from edgeprune.pruning.channels import Channels
from edgeprune.pruning.cost import CostModel, macs, of, params
from edgeprune.pruning.layers import Floats, Ints, Mask

#: No layer falls below this fraction of its width (nor below one rounding step).
FLOOR = 0.25
#: The required relative reduction of MACs and parameters per relative reduction of channels, for a budget by ratio.
SHARE = 1.15

#: The indices of the units' picked options.
Picked = Sequence[int] | Ints


@dataclass(frozen=True)
class Budget:
    """The limit that a plan must meet. The options with these names declare the ranges (edgeprune/options.py).

    A `latency_ms` becomes a `latency` after the unpruned network has been measured (latency.py).

    Attributes:
        kind: `ratio`, `macs`, `params`, `latency` or `latency_ms`.
        value: For `ratio` the fraction of prunable channels to remove; for `macs`, `params` and `latency` the fraction
            of the unpruned network's cost to keep; for `latency_ms` the milliseconds per image.

    Raises:
        InputError: The value is outside its range.
    """

    kind: str
    value: float

    def __post_init__(self) -> None:
        name = "latency_ratio" if self.kind == "latency" else self.kind
        declared(BudgetOptions)[name].check(self.value)

    @classmethod
    def asked(cls, **given: float | None) -> Budget:
        """Make the budget from the given option.

        Args:
            **given: The values of ratio, macs, params, latency_ratio and latency_ms; None if an option is not given.
                Milliseconds stay milliseconds until they have been measured.

        Raises:
            InputError: No value or more than one is given, or the value is outside its range.
        """
        chosen = {name: value for name, value in given.items() if value is not None}
        if len(chosen) != 1:
            raise InputError(f"budget: give exactly one of {', '.join(map(named, given))} (found {len(chosen)})")
        name, value = next(iter(chosen.items()))
        return cls("latency" if name == "latency_ratio" else name, value)

    def __str__(self) -> str:
        return f"{self.kind} {self.value:g}"

    def step(self, left: float, steps: int) -> Budget:
        """The next of `steps` equal steps toward this budget.

        Args:
            left: The current network's fraction of the unpruned network's cost (of its prunable channels, for a ratio).
            steps: The number of steps from the current network to this budget.

        Returns:
            A budget for the current network.
        """
        goal = 1 - self.value if self.kind == "ratio" else self.value
        share = min(goal / left, 1.0) ** (1 / steps)
        return Budget(self.kind, 1 - share if self.kind == "ratio" else share)


@dataclass(frozen=True)
class Unit:
    """Groups with one common decision, because they keep equal shares or because the caller joins them.

    Attributes:
        groups: Indices into `Channels.groups`.
        options: (k, groups of the unit) kept counts, full widths first.
        loss: (k,) total score of the channels that each option removes.
    """

    groups: tuple[int, ...]
    options: Ints
    loss: Floats

    @property
    def removed(self) -> Ints:
        """(k,) number of channels that each option removes in all groups of the unit."""
        removed: Ints = (self.options[0] - self.options).sum(1)
        return removed


def choose(
    channels: Channels, scores: Floats, budget: Budget, *, multiple: int, uniform: bool = False,
    cost: CostModel | None = None,
) -> Mask:  # fmt: skip
    """Choose the channels to keep, with one decision for each group or tie of groups (`solve` over `units`).

    Args:
        channels: The channels of the network.
        scores: (atoms,) cost of removing each atom.
        budget: The limit to meet.
        multiple: Kept counts are multiples of it if the full width is; 8 suits FP16 tensor cores.
        uniform: See `solve`.
        cost: See `solve`.

    Returns:
        (atoms,) bool, True = keep.
    """
    return solve(channels, scores, units(channels, scores, multiple), budget, uniform=uniform, cost=cost)


def solve(
    channels: Channels, scores: Floats, units: list[Unit], budget: Budget, *, uniform: bool = False,
    cost: CostModel | None = None,
) -> Mask:  # fmt: skip
    """Decide for each atom whether it is kept or removed.

    Args:
        channels: The channels of the network.
        scores: (atoms,) cost of removing each atom; atoms with an infinite score stay.
        units: The decisions, from `units()` or from portable.py.
        budget: The limit to meet.
        uniform: Every unit loses the same share; the scores only rank the channels within a group.
        cost: The cost that the budget counts; None takes the cost model of the budget's kind (`cost.of`).

    Returns:
        (atoms,) bool, True = keep.

    Raises:
        InputError: The floors do not allow the budget.
    """
    if budget.kind == "ratio":
        _check_ratio(channels, units, budget.value)
        within = _removes_enough(channels, units, budget.value)
        picked = _uniform(units, within) if uniform else _by_ratio(channels, units, budget.value)
    else:
        counted = of(budget.kind, channels) if cost is None else cost
        _check_cost(channels, units, counted, budget)
        within = _costs_little(channels, units, counted, budget.value)
        picked = _uniform(units, within) if uniform else _by_cost(channels, units, counted, budget.value)
    return mask(channels, scores, units, picked)


# -- the decisions ---------------------------------------------------------------------------------------------------
def units(channels: Channels, scores: Floats, multiple: int) -> list[Unit]:
    """One unit for every group, and one for every tie of groups that keep equal shares.

    Args:
        channels: The channels of the network.
        scores: (atoms,) cost of removing each atom.
        multiple: Kept counts are multiples of it if the full width is.
    """
    return [_unit(channels, scores, ids, multiple) for ids in _ids(channels)]


def _ids(channels: Channels) -> list[tuple[int, ...]]:
    tied = {g for tie in channels.ties for g in tie}
    alone = [(i,) for i, g in enumerate(channels.groups) if not g.frozen and i not in tied]
    return [*channels.ties, *alone]


def _unit(channels: Channels, scores: Floats, ids: tuple[int, ...], multiple: int) -> Unit:
    widths = np.array([len(channels.groups[g].atoms) for g in ids])
    # A tied group keeps `times` channels for each step of the unit; groups of one width keep one.
    steps = int(np.gcd.reduce(widths))
    times = widths // steps
    finite = np.array([int(np.isfinite(scores[channels.groups[g].atoms]).sum()) for g in ids])
    widest = int(times.max())
    rounding = multiple // math.gcd(multiple, widest) if widths.max() % multiple == 0 else 1
    lowest = max(
        math.ceil(FLOOR * steps), min(-(-multiple // widest), steps), int((-(-(widths - finite) // times)).max())
    )
    kept = np.array([steps, *range(steps - rounding, lowest - 1, -rounding)])
    options = kept[:, None] * times
    return Unit(ids, options, losses(channels, scores, ids, options))


def losses(channels: Channels, scores: Floats, ids: tuple[int, ...], options: Ints) -> Floats:
    """The total score of the removed channels under each option; each group removes its lowest scores.

    Args:
        channels: The channels of the network.
        scores: (atoms,) cost of removing each atom.
        ids: Indices of the groups.
        options: (k, groups) kept counts.

    Returns:
        (k,) float64.
    """
    total = np.zeros(len(options))
    for column, g in enumerate(ids):
        curve = np.concatenate([[0.0], np.cumsum(np.sort(scores[channels.groups[g].atoms]))])
        total += curve[len(channels.groups[g].atoms) - options[:, column]]
    return total


def _counts(channels: Channels, units: list[Unit], picked: Picked) -> Floats:
    """(groups,) kept counts."""
    counts = np.array([len(g.atoms) for g in channels.groups], dtype=float)
    for unit, i in zip(units, picked):
        counts[list(unit.groups)] = unit.options[i]
    return counts


def mask(channels: Channels, scores: Floats, units: list[Unit], picked: Picked) -> Mask:
    """The kept channels for the picked option of each unit; each group removes its lowest scores.

    Args:
        channels: The channels of the network.
        scores: (atoms,) cost of removing each atom.
        units: The decisions.
        picked: The index of each unit's option.

    Returns:
        (atoms,) bool, True = keep.
    """
    keep = np.ones(channels.atoms, dtype=bool)
    for unit, i in zip(units, picked):
        for g, left in zip(unit.groups, unit.options[i]):
            atoms = channels.groups[g].atoms
            keep[atoms[np.argsort(scores[atoms], kind="stable")[: len(atoms) - int(left)]]] = False
    return keep


def _check_ratio(channels: Channels, units: list[Unit], ratio: float) -> None:
    most = sum(int(u.removed[-1]) for u in units)
    step = max((int(np.diff(u.removed).min()) for u in units if len(u.options) > 1), default=0)
    if round(ratio * channels.prunable) > most + step:
        raise InputError(
            f"ratio {ratio:g}: too large; each layer keeps at least {FLOOR:.0%} of its channels, so the largest ratio "
            f"for this model is {most / channels.prunable:.2f}"
        )


def _check_cost(channels: Channels, units: list[Unit], cost: CostModel, budget: Budget) -> None:
    full = cost.of(_counts(channels, units, [0] * len(units)))
    least = cost.of(_counts(channels, units, [-1] * len(units))) / full
    if least > budget.value:
        raise InputError(
            f"{budget}: too small; each layer keeps at least {FLOOR:.0%} of its channels, so the smallest "
            f"{budget.kind} for this model is {least:.2f}"
        )


# -- MACs, parameters, latency ---------------------------------------------------------------------------------------
def _by_cost(channels: Channels, units: list[Unit], cost: CostModel, value: float) -> Ints:
    """(units,) picked options: the least loss found with a cost of at most `value` times the full cost."""
    plan = _Lagrangian(channels, units, cost)
    goal = value * plan.full
    if value >= 1:
        return np.zeros(len(units), dtype=np.int64)
    finite = [u.loss[np.isfinite(u.loss)][-1] for u in units]
    low, high = 0.0, max(max(finite), 1e-30) / plan.full
    while plan.cost_of(best := plan.minimise(high)) > goal:
        high *= 10
    for _ in range(40):
        price = (low * high) ** 0.5 if low else high / 10
        picked = plan.minimise(price)
        if plan.cost_of(picked) <= goal:
            best, high = picked, price
        else:
            low = price
        if low and high / low < 1.001:
            break
    return plan.improve(best, goal)


class _Move(NamedTuple):
    """A change of one unit's option, with its change of loss and cost."""

    unit: int
    option: int
    loss: float
    cost: float


class _Lagrangian:
    """Minimises loss + price * cost unit by unit; with the other units fixed, the cost of each option is known."""

    def __init__(self, channels: Channels, units: list[Unit], cost: CostModel) -> None:
        self.units, self.cost = units, cost
        self.base = _counts(channels, units, [0] * len(units))
        self.full = float(cost.of(self.base))
        self.parts = [cost.rows(cost.only(u.groups)) for u in units]

    def cost_of(self, picked: Ints) -> float:
        return float(self.cost.of(self._counts(picked)))

    def loss_of(self, picked: Ints) -> float:
        return float(sum(u.loss[i] for u, i in zip(self.units, picked)))

    def _counts(self, picked: Ints) -> Floats:
        counts: Floats = self.base.copy()
        for unit, i in zip(self.units, picked):
            counts[list(unit.groups)] = unit.options[i]
        return counts

    def _options(self, u: int, counts: Floats) -> Floats:
        """(k,) cost of the convolutions that unit `u` touches, under each of its options."""
        unit = self.units[u]
        varied = np.repeat(counts[None], len(unit.options), axis=0)
        varied[:, list(unit.groups)] = unit.options
        return self.parts[u].of(varied)

    def minimise(self, price: float) -> Ints:
        picked = np.zeros(len(self.units), dtype=np.int64)
        counts = self.base.copy()
        for _ in range(20):
            before = picked.copy()
            for u, unit in enumerate(self.units):
                picked[u] = int(np.argmin(unit.loss + price * self._options(u, counts)))
                counts[list(unit.groups)] = unit.options[picked[u]]
            if np.array_equal(before, picked):
                break
        return picked

    def improve(self, picked: Ints, goal: float) -> Ints:
        """Restore channels if the goal allows it, and exchange channels between two units, while the loss falls and the
        cost stays within the goal.
        """
        picked = picked.copy()
        for _ in range(20 * len(self.units)):
            counts, total = self._counts(picked), self.cost_of(picked)
            moves: list[_Move] = []
            for u, unit in enumerate(self.units):
                options = self._options(u, counts)
                for i in (picked[u] - 1, picked[u] + 1):
                    if 0 <= i < len(unit.options):
                        loss, cost = unit.loss[i] - unit.loss[picked[u]], options[i] - options[picked[u]]
                        moves.append(_Move(u, int(i), float(loss), float(cost)))
            ups, downs = [m for m in moves if m.loss < 0], [m for m in moves if m.loss >= 0]
            single = [(a.loss, [a]) for a in ups]
            pairs = [
                (a.loss + b.loss, [a, b]) for a in ups for b in downs
                if a.unit != b.unit and a.loss + b.loss < 0 and total + a.cost + b.cost <= 1.01 * goal
            ]  # fmt: skip
            best_first = [sorted(m, key=lambda p: p[0]) for m in (pairs, single)]
            for change, exchange in (*best_first[0][:50], *best_first[1]):
                tried = picked.copy()
                for move in exchange:
                    tried[move.unit] = move.option
                if change < -1e-12 * abs(self.loss_of(picked)) and self.cost_of(tried) <= goal:
                    picked = tried
                    break
            else:
                return picked
        return picked


def _costs_little(channels: Channels, units: list[Unit], cost: CostModel, value: float) -> Callable[[Ints], bool]:
    """A predicate: picked options cost at most `value` times the full cost."""
    most = value * float(cost.of(_counts(channels, units, [0] * len(units)))) * (1 + 1e-9)
    return lambda picked: float(cost.of(_counts(channels, units, picked))) <= most


def _removes_enough(channels: Channels, units: list[Unit], ratio: float) -> Callable[[Ints], bool]:
    """A predicate: picked options remove at least the fraction `ratio` of the prunable channels."""
    least = ratio * channels.prunable
    return lambda picked: sum(int(u.removed[i]) for u, i in zip(units, picked)) >= least


def _uniform(units: list[Unit], within: Callable[[Ints], bool]) -> Ints:
    """(units,) picked options: the same share of every unit, as closely as the rounding allows.

    All units of one width round at the same share, which may miss the budget. The units with the largest downward
    rounding then take a step back.

    Args:
        units: The decisions.
        within: Returns whether picked options meet the budget.
    """
    left = [u.options.sum(1) / u.options[0].sum() for u in units]

    def pick(share: float) -> Ints:
        return np.array([int(np.argmin(np.abs(fractions - share))) for fractions in left], dtype=np.int64)

    low, high = 0.0, 1.0
    picked = pick(1.0)
    if within(picked):
        return picked
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if within(pick(middle)) else (low, middle)
    picked = pick(low)
    for u in sorted(range(len(units)), key=lambda u: left[u][picked[u]] - low):
        back = picked.copy()
        back[u] = max(picked[u] - 1, 0)
        if within(back):
            picked = back
    return picked


# -- ratio -----------------------------------------------------------------------------------------------------------
def _by_ratio(channels: Channels, units: list[Unit], ratio: float) -> Ints:
    goal = round(ratio * channels.prunable)
    sizes = [macs(channels), params(channels)]
    full = np.array([len(g.atoms) for g in channels.groups], dtype=float)
    wanted = 1 - min(SHARE * ratio, 0.9)
    worth = _worth(channels, units, ratio)

    def pick(price: float) -> tuple[Ints, bool]:
        picked = _knapsack(units, goal, price * worth)
        counts = _counts(channels, units, picked)
        return picked, all(float(c.of(counts) / c.of(full)) <= wanted for c in sizes)

    picked, small = pick(0.0)
    if small:
        return picked
    scale = float(np.median([u.loss[-1] / max(w, 1e-12) / max(u.removed[-1], 1) for u, w in zip(units, worth)]))
    low, high = 0.0, scale * 1e3
    best, _ = pick(high)
    # the lowest price that reaches the required share; the plan changes in steps, so bisection ends
    for _ in range(24):
        price = (low + high) / 2 if low else high / 4
        picked, small = pick(price)
        if small:
            best, high = picked, price
        else:
            low = price
        if low and high / low < 1.02:
            break
        if not low and high < scale * 1e-6:
            break
    return best


def _knapsack(units: list[Unit], goal: int, gain: Floats) -> Ints:
    """Exact dynamic programming: one option for each unit, `goal` removed channels in total (or the nearest reachable
    number), with the least sum of loss - gain * removed.

    Returns:
        The index of each unit's option.
    """
    grid = int(np.gcd.reduce([int(r) for u in units for r in u.removed if r] or [1]))
    slots = goal // grid + max((int(u.removed[-1]) for u in units), default=0) // grid + 1
    best = np.full(slots + 1, np.inf)
    best[0] = 0.0
    choices = []
    for unit, worth in zip(units, gain):
        table = np.full(slots + 1, np.inf)
        choice = np.zeros(slots + 1, dtype=np.int64)
        for i, (loss, removed) in enumerate(zip(unit.loss, unit.removed)):
            shift = int(removed) // grid
            if shift > slots:
                continue
            candidate = best[: slots + 1 - shift] + (loss - worth * removed)
            better = candidate < table[shift:]
            table[shift:][better] = candidate[better]
            choice[shift:][better] = i
        best = table
        choices.append(choice)
    reachable = np.flatnonzero(np.isfinite(best))
    slot = int(reachable[np.argmin(np.abs(reachable * grid - goal))])
    picked = []
    for unit, choice in zip(reversed(units), reversed(choices)):
        i = int(choice[slot])
        picked.append(i)
        slot -= int(unit.removed[i]) // grid
    return np.array(picked[::-1], dtype=np.int64)


def _worth(channels: Channels, units: list[Unit], ratio: float) -> Floats:
    """(units,) cost of one channel of each unit: its share of the MACs plus its share of the parameters, if the
    adjacent layer is also pruned by `ratio`.
    """
    per_atom = np.zeros((channels.atoms, 2))
    for name, positions in channels.positions.items():
        if name in channels.idle:
            continue
        out, inp = channels.out[name], channels.inp.get(name)
        weight = np.array([positions, 1.0]) * channels.taps[name] * (1 - ratio)
        np.add.at(per_atom, out, weight * (1 if inp is None else len(inp)))
        if inp is not None:
            np.add.at(per_atom, inp, weight * len(out))
    per_atom = (per_atom / per_atom.sum(0)).sum(1)
    return np.array([np.concatenate([per_atom[channels.groups[g].atoms] for g in u.groups]).mean() for u in units])
