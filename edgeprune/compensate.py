"""Make up for removed channels without training: re-solve what reads them, in closed form.

After surgery every convolution sees fewer and slightly different inputs. Its weights are solved anew so that its output
on real, unlabelled pictures comes as close as it can to the *original* network's output, layer after layer, each seeing
the already corrected features before it: ridge regression toward the old weights (Channel Pruning, arXiv 1707.06168;
ThiNet, arXiv 1707.06342). The forward pass itself is the loop over the layers: a layer is solved when its input arrives.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgeprune.channels import Channels
from edgeprune.features import patches, rows_for, sampled
from edgeprune.plan import PrunePlan

#: Relative weight of staying near the old weights; the unit is the mean variance of an input.
RIDGE = 3e-3


@torch.no_grad()
def compensate(
    original: nn.Module, pruned: nn.Module, channels: Channels, plan: PrunePlan, pictures: torch.Tensor
) -> int:
    """Re-solve, in place, the convolutions of `pruned` against `original`.

    pictures: (N, 3, H, W) float32, letterboxed. Returns the number of convolutions that were solved.
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
            _resolve(conv, norm, x, target[:, kept])
            solved += 1

        return hook

    hooks = [after[name].register_forward_pre_hook(solve(name)) for name in names]
    try:
        pruned.eval()(pictures)
    finally:
        for hook in hooks:
            hook.remove()
    return solved


def _solvable(before: nn.Module, after: nn.Module, name: str, channels: Channels) -> bool:
    """Ordinary convolutions that can absorb a constant (through their bias or the mean of the norm behind them)."""
    absorbs = name in channels.norm_of or getattr(after, "bias", None) is not None
    return isinstance(before, nn.Conv2d) and before.groups == 1 and absorbs


def _observe(model: nn.Module, layers: dict[str, nn.Conv2d], pictures: torch.Tensor) -> dict:
    """name -> ((rows, C_out) outputs of the original, where they were read)."""
    found = {}

    def observe(name):
        def hook(conv, inputs, output):
            batch, _, height, width = output.shape
            where = sampled(conv, rows_for(conv), batch, height, width, name)
            picture, ys, xs = where
            found[name] = (output[picture, :, ys, xs], where)

        return hook

    hooks = [conv.register_forward_hook(observe(name)) for name, conv in layers.items()]
    try:
        model.eval()(pictures)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _resolve(conv: nn.Conv2d, norm: nn.Module | None, x: torch.Tensor, y: torch.Tensor) -> None:
    """Minimise |W x + b - y|^2 + ridge |W - W_old|^2 over W and b. x: (rows, D), y: (rows, C_out)."""
    weight = conv.weight.flatten(1)
    x_mean, y_mean = x.mean(0), y.mean(0)
    x = x - x_mean
    residual = (y - y_mean) - x @ weight.T
    gram = (x.T @ x).double() / len(x)
    cross = (x.T @ residual).double() / len(x)
    ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-12)
    gram.diagonal().add_(ridge)
    change = torch.linalg.solve(gram, cross).T.to(weight.dtype)
    new = weight + change
    if not torch.isfinite(new).all():  # a dead input: leave the layer as the surgery left it
        return
    conv.weight.copy_(new.view_as(conv.weight))
    offset = y_mean - new @ x_mean
    if conv.bias is not None:
        conv.bias.copy_(offset)
    else:
        norm.running_mean.sub_(offset)
