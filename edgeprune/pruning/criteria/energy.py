"""Output energy: the part of its readers' outputs that is lost with a channel after the readers have been refitted.

For a convolution that reads x with weights W, removing the inputs c and refitting the rest costs tr(W_c ((G^-1)_cc)^-1
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
        columns = torch.tensor([where[a] for a in group.atoms.tolist()], device=self.weight.device)
        flat = columns.flatten()
        return _Block(self.weight[:, flat], self.inverse[flat][:, flat], columns.shape[1])


class _Block:
    """The part of one reader that belongs to one group, conditioned on the atoms removed so far.

    The inverse H of the moments, conditioned on the removed columns S, is H - F^T F with F = (chol H_SS)^-1 H_S. F
    grows by the rows of each removed atom, and H stays as it is: ranking the atoms needs only the diagonal blocks of
    the conditioned inverse. An update of all of H for each atom would take about three times as many operations.

    Attributes:
        weight: (C_out, n*b) conditioned weights.
        inverse: (n*b, n*b) H.
        factor: (n*b, n*b); its first `removed` rows are F.
        removed: The number of removed columns.
        diagonal: (n, b, b) conditioned diagonal blocks.
        size: b, the columns of an atom.
    """

    def __init__(self, weight: torch.Tensor, inverse: torch.Tensor, size: int) -> None:
        self.weight, self.inverse, self.size = weight, inverse, size
        self.factor, self.removed = torch.empty_like(inverse), 0
        columns = torch.arange(len(inverse), device=inverse.device).view(-1, size)
        self.diagonal = inverse[columns[:, :, None], columns[:, None, :]]

    def cost(self, alive: torch.Tensor) -> torch.Tensor:
        """(len(alive),) tr(W_c (H_cc)^-1 W_c^T) of each remaining atom c."""
        weight = self.weight.view(len(self.weight), -1, self.size)[:, alive].permute(1, 2, 0)  # (k, b, C_out)
        costs: torch.Tensor = (torch.linalg.inv(self.diagonal[alive]) * (weight @ weight.mT)).sum((1, 2))
        return costs

    def remove(self, atoms: torch.Tensor) -> None:
        """Condition on these atoms being zero: one more block of rows of a Cholesky factorisation."""
        span = (atoms[:, None] * self.size + torch.arange(self.size, device=atoms.device)).flatten()
        known = self.factor[: self.removed]
        rows = self.inverse[span] - known[:, span].T @ known  # (s, n*b) of the conditioned inverse
        root = torch.linalg.cholesky(rows[:, span])
        new = torch.linalg.solve_triangular(root, rows, upper=False)
        self.factor[self.removed : self.removed + len(span)] = new
        self.removed += len(span)
        by_atom = new.view(len(span), -1, self.size).permute(1, 2, 0)
        self.diagonal -= by_atom @ by_atom.mT
        self.weight -= torch.linalg.solve_triangular(root, self.weight[:, span].T, upper=False).T @ new


def _eliminate(blocks: list[_Block], count: int) -> Floats:
    """Greedy elimination over all readers at once, in about ROUNDS rounds, down to the budget's floor.

    The atoms below the floor cost as much as the last eliminated one.

    Returns:
        (count,) costs.
    """
    costs, alive, worst = np.zeros(count), np.arange(count), 0.0
    at_once = max(1, count // ROUNDS)
    device = blocks[0].weight.device

    def on_device(atoms: Ints) -> torch.Tensor:
        return torch.from_numpy(atoms).to(device)

    while len(alive) > FLOOR * count:
        total = torch.stack([block.cost(on_device(alive)) for block in blocks]).sum(0).cpu().numpy()
        order = np.argsort(total, kind="stable")[:at_once]
        for i in order:
            worst = max(worst, float(total[i]))  # never below an earlier cost, because the order is the ranking
            costs[alive[i]] = worst
        for block in blocks:
            block.remove(on_device(alive[order]))
        alive = np.delete(alive, order)
        costs[alive] = np.nextafter(worst, np.inf)
    return costs
