"""Output energy: the part of its readers' outputs that is lost with a channel after the readers have been re-solved.

For a convolution that reads x with weights W, removing the inputs c and re-solving the rest costs tr(W_c ((G^-1)_cc)^-1
W_c^T), where G is the second moments of x on real images (Optimal Brain Surgeon, in blocks: Hassibi & Stork 1993;
Optimal Brain Compression, arXiv 2208.11580). The channels of a group are eliminated greedily, the cheapest first. G^-1
and W are updated after each elimination, so that only one of two interchangeable channels is cheap.

Costs are fractions of a reader's output variance after its batch norm, times the square root of the estimated change of
the detection loss without that output (the diagonal of the empirical Fisher information). The root is an empirical
compromise: the diagonal assumes that the errors of neighbouring positions are independent, which they are not, and so
underestimates the early, large maps. On YOLOv8n COCO at equal MACs before fine-tuning, the root was better than both
exponents 0 and 1.

Without NMS, the scores of a one-to-one head must also tell the best position of an object from its neighbours. Errors
in its towers therefore cost more than the Fisher information states. YOLO26n COCO at 80 % of MACs, chosen in one round
on 16 images of 320 px, judged on 64 others: mAP50-95 0.185 with the factor 1, 0.207 with 4, 0.219 with 16.

No layer reads the queries and keys of an attention block; their products decide the attention. A query and its key cost
their share of the variance of these products, times the cost of the head's values.
"""

from __future__ import annotations

import numpy as np
import torch
from edgeprune_device.progress import Progress, silent
from torch import nn

from edgeprune.data.samples import Samples
from edgeprune.model.head import one_to_one
from edgeprune.pruning.attention import Keys
from edgeprune.pruning.budget import FLOOR
from edgeprune.pruning.channels import Channels, Group
from edgeprune.pruning.features import Moments, each_moments, sensitivity
from edgeprune.pruning.layers import Floats, Ints, convolutions, norms

NEEDS_SAMPLES = True
#: Ridge of the inverse, relative to the mean input variance: the same as the compensation's.
RIDGE = 3e-3
#: The number of cost updates during the elimination of a group of n channels, in place of n updates.
ROUNDS = 32
#: Factor of the cost of a channel that only the towers of an exported one-to-one head make.
ONE_TO_ONE = 16.0
#: The share of the progress that the gradients get; the layers get the rest.
GRADIENTS = 0.4


@torch.no_grad()
def score(model: nn.Module, channels: Channels, samples: Samples, progress: Progress = silent) -> Floats:
    """The cost of each atom at the moment of its elimination, rising along the order of elimination.

    Args:
        model: The network.
        channels: Its channels.
        samples: Labelled training images.
        progress: Receives the fraction done and a line of text.

    Returns:
        (atoms,) float64; infinite if the atom is frozen or no convolution reads it.
    """
    convs, scales = convolutions(model), norms(model)
    used = convs.keys() - channels.idle
    free = np.zeros(channels.atoms, dtype=bool)
    free[np.concatenate([g.atoms for g in channels.groups if not g.frozen])] = True
    attending = [keys for keys in channels.keys if free[channels.out[keys.source][keys.queries]].all()]
    reading = {c for g in channels.groups if not g.frozen for c in g.consumers if c in used}
    readers = sorted(reading.union(*({keys.source, keys.reader} for keys in attending)))
    felt = sensitivity(model, samples, readers, progress=lambda done, text: progress(GRADIENTS * done, text))
    scores = np.full(channels.atoms, np.inf)
    unseen = set(readers)
    waiting = {i: g for i, g in enumerate(channels.groups) if not g.frozen and unseen & set(g.consumers)}
    known: dict[str, _Consumer] = {}
    makers = {keys.source: keys for keys in attending}
    products: dict[str, Floats] = {}  # by the convolution that reads the values

    def take(name: str, seen: Moments) -> None:
        """Score each group after the last of its readers has been seen; drop a reader after its last group."""
        known[name] = _Consumer(convs[name], scales.get(channels.norm_of.get(name, "")), felt[name], seen)
        unseen.discard(name)
        if name in makers:
            products[makers[name].reader] = _products(makers[name], convs[name], scales[makers[name].norm], seen)
        for keys in attending:
            if keys.reader == name:
                share = products[name] / products[name].sum(1, keepdims=True).clip(1e-30)
                lost = known[name].energy(seen, keys.values)[:, None] * share
                for part in (keys.queries, keys.keys):  # the same atoms
                    scores[channels.out[keys.source][part]] = lost
        for i in [i for i, g in waiting.items() if not unseen & set(g.consumers)]:
            group = waiting.pop(i)
            blocks = [known[c].block(channels.inp[c], group) for c in group.consumers if c in known]
            scores[group.atoms] = _eliminate(blocks, len(group.atoms))
        for done in known.keys() - {c for g in waiting.values() for c in g.consumers}:
            del known[done]
        count = len(readers) - len(unseen)
        progress(GRADIENTS + (1 - GRADIENTS) * count / len(readers), f"layer {count}/{len(readers)}")

    each_moments(model, samples.pictures, readers, take)
    towers = tuple(f"{name}." for name in one_to_one(model))
    for group in channels.groups:
        if group.producers and all(name.startswith(towers) for name in group.producers):
            scores[group.atoms] *= ONE_TO_ONE
    return scores


@torch.no_grad()
def _products(keys: Keys, conv: nn.Conv2d, norm: nn.BatchNorm2d, seen: Moments) -> Floats:
    """(heads, n) variance of each query times its key, over the positions of the keys.

    A constant in a key adds the same to every product of a query, which the softmax ignores.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    weight = conv.weight.flatten(1).double()
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).double()
    variance = ((weight @ seen.gram) * weight).sum(1) * scale.square()
    mean = (weight @ seen.mean - norm.running_mean) * scale + norm.bias
    second = (variance + mean.square()).cpu().numpy()
    product: Floats = second[keys.queries] * variance.cpu().numpy()[keys.keys]
    return product


class _Consumer:
    """A reader: its weights in units of cost, and the inverse of its input moments."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, felt: torch.Tensor, seen: Moments) -> None:
        weight = conv.weight.flatten(1).double()
        variance = ((weight @ seen.gram) * weight).sum(1)  # (C_out,) of the outputs
        scale = torch.ones_like(variance)
        if norm is not None and norm.running_var is not None:
            scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).double().square()
        lost = (felt.to(variance.device) * variance).sum().sqrt() / (scale * variance).sum().clamp_min(1e-12)
        self.weight = weight * (scale * lost).sqrt()[:, None]
        gram = seen.gram.clone()
        gram.diagonal().add_(RIDGE * gram.diagonal().mean().clamp_min(1e-12))
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        self.taps = conv.kernel_size[0] * conv.kernel_size[1]

    def energy(self, seen: Moments, parts: Ints) -> Floats:
        """(parts,) the cost of each part of the inputs, (parts, inputs of a 1 x 1 convolution), if it is lost whole."""
        gram, costs = seen.gram.cpu().numpy(), []
        for part in parts:
            weight = self.weight[:, part].cpu().numpy()
            costs.append(float(((weight @ gram[np.ix_(part, part)]) * weight).sum()))
        return np.array(costs)

    def block(self, inputs: Ints, group: Group) -> _Block:
        """The part for the group's n atoms of b columns each; their elimination affects no other atoms."""
        where: dict[int, list[int]] = {atom: [] for atom in group.atoms.tolist()}
        for position, atom in enumerate(inputs.tolist()):
            if atom in where:
                where[atom] += range(position * self.taps, (position + 1) * self.taps)
        columns = np.array([where[a] for a in group.atoms.tolist()])
        flat = columns.ravel()
        weight, inverse = self.weight.cpu().numpy(), self.inverse.cpu().numpy()
        return _Block(weight[:, flat].copy(), inverse[np.ix_(flat, flat)], columns.shape[1])


class _Block:
    """The part of one reader that belongs to one group, conditioned on the atoms removed so far.

    Attributes:
        weight: (C_out, n*b).
        inverse: (n*b, n*b).
        size: b, the columns of an atom.
    """

    def __init__(self, weight: Floats, inverse: Floats, size: int) -> None:
        self.weight, self.inverse, self.size = weight, inverse, size

    def cost(self, alive: Ints) -> Floats:
        """(len(alive),) tr(W_c (H_cc)^-1 W_c^T) of each remaining atom c."""
        columns = alive[:, None] * self.size + np.arange(self.size)
        diagonal = self.inverse[columns[:, :, None], columns[:, None, :]]  # (k, b, b)
        weight = self.weight[:, columns].transpose(1, 2, 0)  # (k, b, C_out)
        costs: Floats = np.einsum("kbo,kbc,kco->k", weight, np.linalg.inv(diagonal), weight, optimize=True)
        return costs

    def remove(self, atoms: Ints) -> None:
        """Condition on these atoms being zero (the Schur complement)."""
        span = (atoms[:, None] * self.size + np.arange(self.size)).ravel()
        gain = np.linalg.solve(self.inverse[np.ix_(span, span)], self.inverse[span])  # (s, n*b)
        self.weight -= self.weight[:, span] @ gain
        self.inverse -= self.inverse[:, span] @ gain


def _eliminate(blocks: list[_Block], count: int) -> Floats:
    """Greedy elimination over all readers at once, in about ROUNDS rounds, down to the budget's floor.

    The atoms below the floor cost as much as the last eliminated one.

    Returns:
        (count,) costs.
    """
    costs, alive, worst = np.zeros(count), np.arange(count), 0.0
    at_once = max(1, count // ROUNDS)
    while len(alive) > FLOOR * count:
        total = np.sum([block.cost(alive) for block in blocks], axis=0)
        order = np.argsort(total, kind="stable")[:at_once]
        for i in order:
            worst = max(worst, float(total[i]))  # never below an earlier cost, because the order is the ranking
            costs[alive[i]] = worst
        for block in blocks:
            block.remove(alive[order])
        alive = np.delete(alive, order)
        costs[alive] = np.nextafter(worst, np.inf)
    return costs
