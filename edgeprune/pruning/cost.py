"""Cost models: the cost of a network as a function of the kept channels of each group.

MACs, parameters and milliseconds (latency.py) have the same form: every convolution has a cost for each pair of an
input and an output channel, for each output channel, for each input channel, and a constant. One solver serves all
three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeprune.pruning.channels import Channels
from edgeprune.pruning.layers import Floats, Ints


@dataclass(frozen=True)
class CostModel:
    """The sum over convolutions of pair * made * read + out * made + inp * read, plus `fixed`.

    `made` and `read` are the channel counts of the convolution's output and input.

    Attributes:
        pair: (convolutions,) cost of each pair of an input and an output channel.
        out: (convolutions,) cost of each output channel.
        inp: (convolutions,) cost of each input channel.
        fixed: The cost that does not depend on the counts.
        made: (convolutions, groups) number of a convolution's output channels per atom of a group.
        read: (convolutions, groups) number of a convolution's input channels per atom of a group; an atom in four parts
            of a concatenation is read four times.
        unfollowed: (convolutions,) 1 if the input is not followed; its width is then part of `pair`.
    """

    pair: Floats
    out: Floats
    inp: Floats
    fixed: float
    made: Floats
    read: Floats
    unfollowed: Floats

    def of(self, counts: Ints | Floats) -> Floats:
        """The cost of kept counts.

        Args:
            counts: (..., groups) kept channels of each group.

        Returns:
            (...) cost, in the unit of the model.
        """
        made, read = counts @ self.made.T, counts @ self.read.T + self.unfollowed
        total: Floats = (self.pair * made * read + self.out * made + self.inp * read).sum(-1) + self.fixed
        return total

    def only(self, groups: Sequence[int]) -> Ints:
        """Indices of the convolutions whose cost depends on any of these groups."""
        return np.flatnonzero((self.made[:, groups] > 0).any(1) | (self.read[:, groups] > 0).any(1))

    def rows(self, index: Ints) -> CostModel:
        """The share of the convolutions at `index`, without `fixed`."""
        return CostModel(self.pair[index], self.out[index], self.inp[index], 0.0, self.made[index], self.read[index],
                    self.unfollowed[index])  # fmt: skip


def bilinear(
    channels: Channels,
    pair: npt.ArrayLike,
    out: npt.ArrayLike | None = None,
    inp: npt.ArrayLike | None = None,
    fixed: float = 0.0,
) -> CostModel:
    """Make a cost model over the followed convolutions, in the order of `channels.positions`. Idle ones cost nothing.

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
    used = np.array([float(n not in channels.idle) for n in names])
    zero = np.zeros(len(names))
    return CostModel(
        used * np.asarray(pair, dtype=float), zero if out is None else used * np.asarray(out, dtype=float),
        zero if inp is None else used * np.asarray(inp, dtype=float), fixed, made / sizes, read / sizes, unfollowed,
    )  # fmt: skip


def macs(channels: Channels) -> CostModel:
    """Multiply-accumulates of the convolutions, counted as in `model.count`."""
    return bilinear(channels, [channels.positions[n] * channels.taps[n] for n in channels.positions])


def params(channels: Channels) -> CostModel:
    """Parameters: the weights, and two for each channel with a batch norm (one for a bias)."""
    return bilinear(
        channels,
        [channels.taps[n] for n in channels.positions],
        [2.0 if n in channels.norm_of else 1.0 for n in channels.positions],
    )


def of(kind: str, channels: Channels) -> CostModel:
    """The cost model of a budget of kind `macs` or `params`."""
    return {"macs": macs, "params": params}[kind](channels)
