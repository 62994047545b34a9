"""Compensation without training: the weights that read removed channels are refitted by least squares.

After surgery every convolution sees fewer and slightly different inputs. Its weights are refitted so that its output
on real, unlabelled images is as close as possible to the output of the *original* network. The layers are refitted in
sequence, and each sees the corrected features of the layers before it. The method is ridge regression toward the old
weights (Channel Pruning, arXiv 1707.06168; ThiNet, arXiv 1707.06342). The forward pass is the loop over the layers: a
layer is refitted when its input arrives.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from edgeprune_device.progress import Progress, silent
from torch import nn

from edgeprune.pruning.channels import Channels
from edgeprune.pruning.features import Positions, hooked, patches, rows_for, sampled
from edgeprune.pruning.layers import convolutions, norms
from edgeprune.pruning.plan import PrunePlan

#: Ridges, in units of the mean variance of an input. Each layer uses the ridge that best predicts held-out images. The
#: last ridge almost forbids a change: deep layers of small images have fewer observations than unknowns.
RIDGES = (3e-3, 3e-2, 3e-1, 3.0, 1e3)
#: Limits of the factor that restores the spread of an output, because an unpredictable output would become noise.
SPREAD = (0.5, 2.0)


@torch.no_grad()
def compensate(
    original: nn.Module,
    pruned: nn.Module,
    channels: Channels,
    plan: PrunePlan,
    pictures: torch.Tensor,
    progress: Progress = silent,
) -> int:
    """Refit, in place, the convolutions of `pruned` to the outputs of `original`.

    Args:
        original: The network before surgery.
        pruned: The network after surgery; it is changed.
        channels: The channels of `original`.
        plan: The plan that `pruned` was pruned to.
        pictures: (N, 3, H, W) float32 in [0, 1], letterboxed.
        progress: Receives the fraction done and a line of text.

    Returns:
        The number of convolutions that were refitted.
    """
    before, after, means = convolutions(original), convolutions(pruned), norms(pruned)
    keep = plan.mask(channels)
    names = [n for n in channels.out if n in before and _solvable(before[n], after[n], n, channels)]
    targets = _observe(original, {n: before[n] for n in names}, pictures)

    solved = 0

    def solve(name: str) -> Callable[..., None]:
        kept = torch.from_numpy(np.flatnonzero(keep[channels.out[name]])).to(pictures.device)

        def hook(conv: nn.Conv2d, inputs: tuple[torch.Tensor]) -> None:
            nonlocal solved
            target, where = targets.pop(name)
            x = patches(conv, inputs[0], where)
            norm = means.get(channels.norm_of.get(name, ""))
            unseen = where[0] >= len(pictures) * 3 // 4
            _resolve(conv, norm, x, target[:, kept], unseen)
            solved += 1
            progress(solved / len(names), f"layer {solved}/{len(names)}")

        return hook

    with hooked({name: after[name] for name in names}, solve, before=True):
        pruned.eval()(pictures)
    return solved


def _solvable(before: nn.Conv2d, after: nn.Conv2d, name: str, channels: Channels) -> bool:
    """Whether a convolution is ungrouped and can absorb a constant in its bias or in the mean of the norm after it."""
    return before.groups == 1 and (name in channels.norm_of or after.bias is not None)


def _observe(
    model: nn.Module, layers: dict[str, nn.Conv2d], pictures: torch.Tensor
) -> dict[str, tuple[torch.Tensor, Positions]]:
    """name -> ((rows, C_out) outputs of the original, their positions)."""
    observed = {}

    def observe(name: str) -> Callable[..., None]:
        def hook(conv: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            batch, _, height, width = output.shape
            where = sampled(conv, rows_for(conv), batch, height, width, name)
            picture, ys, xs = where
            observed[name] = (output[picture, :, ys, xs], where)

        return hook

    with hooked(layers, observe):
        model.eval()(pictures)
    return observed


def _resolve(
    conv: nn.Conv2d, norm: nn.BatchNorm2d | None, x: torch.Tensor, y: torch.Tensor, unseen: torch.Tensor
) -> None:
    """Minimise |W x + b - y|^2 + ridge |W - W_old|^2 over W and b, in place.

    Args:
        conv: The convolution to solve.
        norm: The batch norm after it, or None.
        x: (rows, D) input patches.
        y: (rows, C_out) outputs of the original.
        unseen: (rows,) bool, the held-out rows that select the ridge.
    """
    old = conv.weight.flatten(1)
    x_mean, y_mean = x.mean(0), y.mean(0)
    x = x - x_mean
    residual = (y - y_mean) - x @ old.T
    parts = [_products(x[rows], residual[rows]) for rows in (~unseen, unseen)]
    moments, cross = (a + b for a, b in zip(*parts))
    unit = (moments.diagonal().mean()).clamp_min(1e-12)

    if not unseen.any() or unseen.all():  # with a single image no rows can be held out
        return
    judged_by = parts[1]

    def loss(change: torch.Tensor) -> float:  # |change x - residual|^2 over the held-out rows, minus a constant
        return float((change * (judged_by[0] @ change - 2 * judged_by[1])).sum())

    judged = [(loss(_ridged(*parts[0], ridge, unit)), ridge) for ridge in RIDGES]
    new = old + _ridged(moments, cross, min(judged)[1], unit).T.to(old.dtype)
    if not torch.isfinite(new).all():  # a dead input: leave the layer unchanged after surgery
        return
    # Least squares shrinks the outputs: the part that the inputs no longer determine becomes the mean, and a detector's
    # scores fall. Each output is scaled back to its original spread.
    spread = (y - y_mean).square().mean(0) / (x @ new.T).square().mean(0).clamp_min(1e-12)
    new = new * spread.sqrt().clamp(*SPREAD)[:, None]
    conv.weight.copy_(new.view_as(conv.weight))
    offset = y_mean - new @ x_mean
    if conv.bias is not None:
        conv.bias.copy_(offset)
    elif norm is not None and norm.running_mean is not None:
        norm.running_mean.sub_(offset)


def _products(x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (x.T @ x).double(), (x.T @ residual).double()


def _ridged(moments: torch.Tensor, cross: torch.Tensor, ridge: float, unit: torch.Tensor) -> torch.Tensor:
    """(D, C_out), the change of the weights: (moments + ridge * unit * I)^-1 cross."""
    system = moments.clone()
    system.diagonal().add_(ridge * unit)
    try:
        return torch.cholesky_solve(cross, torch.linalg.cholesky(system))
    except RuntimeError:  # LinAlgError: rounding made it indefinite
        change: torch.Tensor = torch.linalg.solve(system, cross)
        return change
