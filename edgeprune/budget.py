"""Which channels to keep under a budget: one optimisation over all groups, rounding and floors inside it.

`--ratio R` removes the fraction R of the prunable channels, as near as the rounding allows. Among the plans that do,
the one with the least total score is taken whose parameters and MACs fall at least `SHARE` times as much as the
channels do (or as near to that as the floors allow): a plan that takes its channels only where they are cheap would be
smaller on paper and no faster.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from edgeprune_device.errors import InputError

from edgeprune.channels import Channels

#: No layer falls below this fraction of its width (nor below one rounding step).
FLOOR = 0.25
#: Relative fall of MACs and of parameters per relative fall of channels that a plan has to reach.
SHARE = 1.15


@dataclass(frozen=True)
class _Unit:
    """Groups that keep equal counts, as one decision.

    options: (k,) allowed kept counts per group, falling from the full width; loss: (k,) total score of what goes;
    removed: (k,) channels that go, over all groups of the unit.
    """

    groups: tuple[int, ...]
    options: np.ndarray
    loss: np.ndarray
    removed: np.ndarray


def choose(channels: Channels, scores: np.ndarray, ratio: float, *, multiple: int) -> np.ndarray:
    """Keep or remove each atom.

    Args:
        scores: (atoms,) cost of removing each atom; atoms of infinite score stay.
        ratio: fraction of the prunable channels to remove, in [0, 1).
        multiple: kept counts are multiples of it where the full width is (8 suits FP16 tensor cores).

    Returns:
        (atoms,) bool, True = keep.

    Raises:
        InputError: ratio outside [0, 1), or more than the floors allow.
    """
    if not 0 <= ratio < 1:
        raise InputError(f"ratio {ratio:g} is outside [0, 1): it is the fraction of prunable channels to remove")
    units = [_unit(channels, scores, ids, multiple) for ids in _units(channels)]
    goal = round(ratio * channels.prunable)
    most = sum(int(u.removed[-1]) for u in units)
    if goal > most + multiple:
        raise InputError(
            f"ratio {ratio:g} is more than can go: with at least {FLOOR:.0%} of each layer kept, "
            f"the largest ratio of this model is {most / channels.prunable:.2f}"
        )
    costs = _costs(channels, units, ratio)
    wanted = 1 - min(SHARE * ratio, 0.9)

    def solve(price: float) -> np.ndarray:
        return _mask(channels, scores, units, _knapsack(units, goal, price * costs))

    keep = solve(0.0)
    if _share(channels, keep) <= wanted:
        return keep
    scale = float(np.median([u.loss[-1] / max(c, 1e-12) / max(u.removed[-1], 1) for u, c in zip(units, costs)]))
    low, high = 0.0, scale * 1e3
    best = solve(high)
    for _ in range(24):  # the least price that buys the wanted share; the plan changes in steps, so bisection ends
        price = (low + high) / 2 if low else high / 4
        keep = solve(price)
        if _share(channels, keep) <= wanted:
            best, high = keep, price
        else:
            low = price
        if low and high / low < 1.02:
            break
        if not low and high < scale * 1e-6:
            break
    return best


def _units(channels: Channels) -> list[tuple[int, ...]]:
    tied = {g for tie in channels.ties for g in tie}
    alone = [(i,) for i, g in enumerate(channels.groups) if not g.frozen and i not in tied]
    return [*channels.ties, *alone]


def _unit(channels: Channels, scores: np.ndarray, ids: tuple[int, ...], multiple: int) -> _Unit:
    width = len(channels.groups[ids[0]].atoms)
    finite = min(int(np.isfinite(scores[channels.groups[g].atoms]).sum()) for g in ids)
    lowest = max(int(np.ceil(FLOOR * width)), min(multiple, width), width - finite)
    step = multiple if width % multiple == 0 else 1
    options = np.array([width, *(k for k in range(width - step, lowest - 1, -step))])
    curves = [np.concatenate([[0.0], np.cumsum(np.sort(scores[channels.groups[g].atoms]))]) for g in ids]
    gone = width - options
    return _Unit(ids, options, sum(c[gone] for c in curves), gone * len(ids))


def _knapsack(units: list[_Unit], goal: int, gain: np.ndarray) -> list[int]:
    """Exact dynamic programme: per unit an option, `goal` channels removed in all (or the nearest that can be reached),
    least sum of loss - gain * removed. Returns the index of each unit's option."""
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
    return picked[::-1]


def _mask(channels: Channels, scores: np.ndarray, units: list[_Unit], picked: list[int]) -> np.ndarray:
    keep = np.ones(channels.atoms, dtype=bool)
    for unit, i in zip(units, picked):
        for g in unit.groups:
            atoms = channels.groups[g].atoms
            gone = len(atoms) - int(unit.options[i])
            keep[atoms[np.argsort(scores[atoms], kind="stable")[:gone]]] = False
    return keep


def size(channels: Channels, keep: np.ndarray) -> np.ndarray:
    """(2,) relative MACs and parameters of the followed convolutions under `keep`."""
    full, left = np.zeros(2), np.zeros(2)
    for name, positions in channels.positions.items():
        out, inp = channels.out[name], channels.inp.get(name)
        weight = np.array([positions, 1.0])
        full += weight * len(out) * (1 if inp is None else len(inp)) * channels.taps[name]
        left += weight * keep[out].sum() * (1 if inp is None else keep[inp].sum()) * channels.taps[name]
    return left / full


def _share(channels: Channels, keep: np.ndarray) -> float:
    return float(size(channels, keep).max())


def _costs(channels: Channels, units: list[_Unit], ratio: float) -> np.ndarray:
    """(units,) what one channel of each unit costs: its share of MACs plus its share of parameters, the layer on the
    other side being cut by `ratio` as well."""
    per_atom = np.zeros((channels.atoms, 2))
    for name, positions in channels.positions.items():
        out, inp = channels.out[name], channels.inp.get(name)
        weight = np.array([positions, 1.0]) * channels.taps[name] * (1 - ratio)
        np.add.at(per_atom, out, weight * (1 if inp is None else len(inp)))
        if inp is not None:
            np.add.at(per_atom, inp, weight * len(out))
    per_atom = (per_atom / per_atom.sum(0)).sum(1)
    return np.array([np.concatenate([per_atom[channels.groups[g].atoms] for g in u.groups]).mean() for u in units])
