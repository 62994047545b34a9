"""Compensation without training: the weights that read removed channels are re-solved in closed form.

After surgery every convolution sees fewer and slightly different inputs. Its weights are solved anew so that its output
on real, unlabelled images comes as close as possible to the output of the *original* network. The layers follow one
another, and each sees the corrected features of the layers before it. The method is ridge regression toward the old
weights (Channel Pruning, arXiv 1707.06168; ThiNet, arXiv 1707.06342). The forward pass itself is the loop over the
layers: a layer is solved when its input arrives.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgeprune.pruning.channels import Channels
from edgeprune.pruning.features import hooked, patches, rows_for, sampled
from edgeprune.pruning.plan import PrunePlan

#: Ridges, in units of the mean variance of an input. Each layer takes the one that best predicts images that it was not
#: solved on. The last one nearly forbids a change: deep layers of small images have fewer observations than unknowns.
RIDGES = (3e-3, 3e-2, 3e-1, 3.0, 1e3)
#: Limits of the factor that restores the spread of an output: an output that is hard to predict would become noise.
SPREAD = (0.5, 2.0)


@torch.no_grad()
def compensate(
    original: nn.Module, pruned: nn.Module, channels: Channels, plan: PrunePlan, pictures: torch.Tensor
) -> int:
    """Re-solve, in place, the convolutions of `pruned` against `original`.

    Args:
        original: The network before surgery.
        pruned: The network after surgery; it is changed.
        channels: The channels of `original`.
        plan: The plan that `pruned` was cut to.
        pictures: (N, 3, H, W) float32 in [0, 1], letterboxed.

    Returns:
        The number of convolutions that were solved.
    """
    before, after = dict(original.named_modules()), dict(pruned.named_modules())
    keep = plan.mask(channels)
    names = [n for n in channels.out if _solvable(before[n], after[n], n, channels)]
    targets = _observe(original, {n: before[n] for n in names}, pictures)

    solved = 0

    def solve(name):
        kept = torch.from_numpy(np.flatnonzero(keep[channels.out[name]]))

        def hook(conv, inputs):
            nonlocal solved
            target, where = targets.pop(name)
            x = patches(conv, inputs[0], where)
            norm = after[channels.norm_of[name]] if name in channels.norm_of else None
            unseen = where[0] >= len(pictures) * 3 // 4
            _resolve(conv, norm, x, target[:, kept], unseen)
            solved += 1

        return hook

    with hooked({name: after[name] for name in names}, solve, before=True):
        pruned.eval()(pictures)
    return solved


def _solvable(before: nn.Module, after: nn.Module, name: str, channels: Channels) -> bool:
    """Whether a layer is an ordinary convolution that can absorb a constant, through its bias or the mean of the norm
    after it.
    """
    absorbs = name in channels.norm_of or getattr(after, "bias", None) is not None
    return isinstance(before, nn.Conv2d) and before.groups == 1 and absorbs


def _observe(model: nn.Module, layers: dict[str, nn.Conv2d], pictures: torch.Tensor) -> dict:
    """name -> ((rows, C_out) outputs of the original, the positions where they were read)."""
    found = {}

    def observe(name):
        def hook(conv, inputs, output):
            batch, _, height, width = output.shape
            where = sampled(conv, rows_for(conv), batch, height, width, name)
            picture, ys, xs = where
            found[name] = (output[picture, :, ys, xs], where)

        return hook

    with hooked(layers, observe):
        model.eval()(pictures)
    return found


def _resolve(
    conv: nn.Conv2d, norm: nn.Module | None, x: torch.Tensor, y: torch.Tensor, unseen: torch.Tensor
) -> None:
    """Minimise |W x + b - y|^2 + ridge |W - W_old|^2 over W and b, in place.

    Args:
        conv: The convolution to solve.
        norm: The batch norm after it, or None.
        x: (rows, D) input patches.
        y: (rows, C_out) outputs of the original.
        unseen: (rows,) bool, the rows that judge the ridge.
    """
    old = conv.weight.flatten(1)
    x_mean, y_mean = x.mean(0), y.mean(0)
    x = x - x_mean
    residual = (y - y_mean) - x @ old.T
    parts = [_products(x[rows], residual[rows]) for rows in (~unseen, unseen)]
    gram, cross = (a + b for a, b in zip(*parts))
    unit = (gram.diagonal().mean()).clamp_min(1e-12)

    def solve(gram, cross, ridge):  # (D, C_out), the change of the weights
        return torch.linalg.solve(gram + ridge * unit * torch.eye(len(gram), dtype=gram.dtype), cross)

    if not unseen.any() or unseen.all():  # a single image: none is left to judge by
        return
    judged_by = parts[1]

    def loss(change):  # |change x - residual|^2 over the unseen rows, less a constant
        return float((change * (judged_by[0] @ change - 2 * judged_by[1])).sum())

    judged = [(loss(solve(*parts[0], ridge)), ridge) for ridge in RIDGES]
    new = old + solve(gram, cross, min(judged)[1]).T.to(old.dtype)
    if not torch.isfinite(new).all():  # a dead input: leave the layer as the surgery left it
        return
    # Least squares shrinks the outputs: the part that the inputs no longer determine becomes the mean, and the scores
    # of a detector sink. Each output is scaled back to the spread that it had.
    spread = (y - y_mean).square().mean(0) / (x @ new.T).square().mean(0).clamp_min(1e-12)
    new = new * spread.sqrt().clamp(*SPREAD)[:, None]
    conv.weight.copy_(new.view_as(conv.weight))
    offset = y_mean - new @ x_mean
    if conv.bias is not None:
        conv.bias.copy_(offset)
    else:
        norm.running_mean.sub_(offset)


def _products(x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (x.T @ x).double(), (x.T @ residual).double()
