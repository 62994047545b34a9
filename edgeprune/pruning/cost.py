"""What a network costs as a function of how many channels each group keeps.

MACs, parameters and (latency.py) milliseconds have one form: every convolution pays for each pair of an input and an
output channel, for each output and for each input, and something whatever its width. So one solver serves all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeprune.pruning.channels import Channels


@dataclass(frozen=True)
class CostModel:
    """sum over convolutions of  pair * out * in + out_ * out + in_ * in,  plus `fixed`; out and in are channel counts.

    made, read: (convolutions, groups) how many channels that a convolution makes (reads) one atom of a group is; an
    atom that four parts of a concatenation carry is read four times. unfollowed: (convolutions,) 1 where the input is
    not followed: its width is part of `pair`.
    """

    pair: np.ndarray
    out: np.ndarray
    inp: np.ndarray
    fixed: float
    made: np.ndarray
    read: np.ndarray
    unfollowed: np.ndarray

    def of(self, counts: np.ndarray) -> np.ndarray:
        """(...) cost of kept counts per group, (..., groups)."""
        made, read = counts @ self.made.T, counts @ self.read.T + self.unfollowed
        return (self.pair * made * read + self.out * made + self.inp * read).sum(-1) + self.fixed

    def only(self, groups: Sequence[int]) -> np.ndarray:
        """Indices of the convolutions whose cost depends on any of these groups."""
        return np.flatnonzero((self.made[:, groups] > 0).any(1) | (self.read[:, groups] > 0).any(1))

    def rows(self, index: np.ndarray) -> CostModel:
        """The share of some convolutions, without `fixed`."""
        return CostModel(self.pair[index], self.out[index], self.inp[index], 0.0, self.made[index], self.read[index],
                    self.unfollowed[index])  # fmt: skip


def bilinear(channels: Channels, pair, out=None, inp=None, fixed: float = 0.0) -> CostModel:
    """A Cost over the followed convolutions, in the order of `channels.positions`; pair, out, inp: (convolutions,)."""
    names = list(channels.positions)
    of = np.empty(channels.atoms, dtype=np.int64)
    for i, group in enumerate(channels.groups):
        of[group.atoms] = i
    made, read = (np.zeros((len(names), len(channels.groups))) for _ in range(2))
    sizes = np.array([len(g.atoms) for g in channels.groups], dtype=float)
    for row, name in enumerate(names):
        np.add.at(made[row], of[channels.out[name]], 1)
        if name in channels.inp:
            np.add.at(read[row], of[channels.inp[name]], 1)
    unfollowed = np.array([float(n not in channels.inp) for n in names])
    zero = np.zeros(len(names))
    return CostModel(
        np.asarray(pair, dtype=float), zero if out is None else np.asarray(out, dtype=float),
        zero if inp is None else np.asarray(inp, dtype=float), fixed, made / sizes, read / sizes, unfollowed,
    )  # fmt: skip


def macs(channels: Channels) -> CostModel:
    """Multiply-accumulates of the convolutions, as count.py counts them."""
    return bilinear(channels, [channels.positions[n] * channels.taps[n] for n in channels.positions])


def params(channels: Channels) -> CostModel:
    """Parameters: the weights, and two a channel for the batch norm behind (a bias is one: too little to matter)."""
    return bilinear(
        channels,
        [channels.taps[n] for n in channels.positions],
        [2.0 if n in channels.norm_of else 1.0 for n in channels.positions],
    )


def of(kind: str, channels: Channels) -> CostModel:
    """The cost that a budget of kind macs or params counts."""
    return {"macs": macs, "params": params}[kind](channels)
