"""Cost models: the cost of a network as a function of the number of kept channels in each group.

MACs, parameters and milliseconds (latency.py) have one form. Every convolution pays for each pair of an input and an
output channel, for each output channel, for each input channel, and a constant. One solver therefore serves all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeprune.pruning.channels import Channels


@dataclass(frozen=True)
class CostModel:
    """The sum over convolutions of pair * made * read + out * made + inp * read, plus `fixed`.

    `made` and `read` are the channel counts of the convolution's output and input.

    Attributes:
        pair: (convolutions,) cost of each pair of an input and an output channel.
        out: (convolutions,) cost of each output channel.
        inp: (convolutions,) cost of each input channel.
        fixed: The cost that does not depend on the counts.
        made: (convolutions, groups) how many output channels of a convolution one atom of a group is.
        read: (convolutions, groups) how many input channels of a convolution one atom of a group is; an atom in four
            parts of a concatenation is read four times.
        unfollowed: (convolutions,) 1 where the input is not followed; its width is then part of `pair`.
    """

    pair: np.ndarray
    out: np.ndarray
    inp: np.ndarray
    fixed: float
    made: np.ndarray
    read: np.ndarray
    unfollowed: np.ndarray

    def of(self, counts: np.ndarray) -> np.ndarray:
        """The cost of kept counts.

        Args:
            counts: (..., groups) kept channels of each group.

        Returns:
            (...) cost, in the unit of the model.
        """
        made, read = counts @ self.made.T, counts @ self.read.T + self.unfollowed
        return (self.pair * made * read + self.out * made + self.inp * read).sum(-1) + self.fixed

    def only(self, groups: Sequence[int]) -> np.ndarray:
        """Indices of the convolutions whose cost depends on any of these groups."""
        return np.flatnonzero((self.made[:, groups] > 0).any(1) | (self.read[:, groups] > 0).any(1))

    def rows(self, index: np.ndarray) -> CostModel:
        """The share of the convolutions at `index`, without `fixed`."""
        return CostModel(self.pair[index], self.out[index], self.inp[index], 0.0, self.made[index], self.read[index],
                    self.unfollowed[index])  # fmt: skip


def bilinear(channels: Channels, pair, out=None, inp=None, fixed: float = 0.0) -> CostModel:
    """Make a cost model over the followed convolutions, in the order of `channels.positions`.

    Args:
        channels: The channels of the network.
        pair: (convolutions,) cost of each pair of an input and an output channel.
        out: (convolutions,) cost of each output channel; None for 0.
        inp: (convolutions,) cost of each input channel; None for 0.
        fixed: The cost that does not depend on the counts.
    """
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
    """Multiply-accumulates of the convolutions, as `model.count` counts them."""
    return bilinear(channels, [channels.positions[n] * channels.taps[n] for n in channels.positions])


def params(channels: Channels) -> CostModel:
    """Parameters: the weights, and two for each channel with a batch norm (one for a bias)."""
    return bilinear(
        channels,
        [channels.taps[n] for n in channels.positions],
        [2.0 if n in channels.norm_of else 1.0 for n in channels.positions],
    )


def of(kind: str, channels: Channels) -> CostModel:
    """The cost model that a budget of kind `macs` or `params` counts by."""
    return {"macs": macs, "params": params}[kind](channels)
