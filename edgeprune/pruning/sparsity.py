"""Sparsity training: batch-norm scales shrink towards zero before pruning (Network Slimming, arXiv 1708.06519).

The paper adds lambda * sign(gamma) to the gradient and steps with SGD. AdamW divides every gradient by its own
magnitude, so a subgradient in AdamW would act strongly on scales with small gradients and hardly on others, whatever
lambda is. Instead, each optimiser step is followed by the L1 norm's proximal step, a soft threshold, just as AdamW
decouples weight decay (arXiv 1711.05101). A scale moves towards zero by lambda times the schedule's fraction of the
learning rate (1 at its peak). It stops at zero, and stays there unless the loss has a stronger effect.
AdamW moves a scale by at most the learning rate, so a lambda near or above the learning rate would zero all scales.

Weight decay does not affect these scales, because Ultralytics decays weights only.
"""

from __future__ import annotations

import torch
from torch import nn

from edgeprune.model.head import idle
from edgeprune.pruning.channels import trace
from edgeprune.pruning.layers import norms

#: A channel whose scale is below this fraction of its layer's largest contributes almost nothing.
SMALL = 1e-2


def prunable_scales(model: nn.Module) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """The scales of the batch norms that have prunable channels.

    Returns:
        For each such norm: its scale (C,), and a mask (C,) bool of its prunable channels.
    """
    channels = trace(model, idle=idle(model))
    free = torch.zeros(channels.atoms, dtype=torch.bool)
    for group in channels.groups:
        free[torch.from_numpy(group.atoms)] = not group.frozen
    known = norms(model)
    scales = []
    for name, atoms in channels.out.items():
        mask = free[torch.from_numpy(atoms)]
        if name in known and mask.any():
            scale = model.get_parameter(f"{name}.weight")
            scales.append((scale, mask.to(scale.device)))
    return scales


@torch.no_grad()
def shrink(scales: list[tuple[nn.Parameter, torch.Tensor]], amount: float) -> None:
    """The proximal step of amount * |scale|, in place: each scale moves towards zero by `amount`, never past it.

    Args:
        scales: The result of `prunable_scales`.
        amount: The step.
    """
    for scale, mask in scales:
        scale.copy_(torch.where(mask, scale.sign() * (scale.abs() - amount).clamp(min=0), scale))


def count_small(model: nn.Module) -> tuple[int, int]:
    """(prunable scales below SMALL of their layer's largest, prunable scales)."""
    small = total = 0
    for scale, mask in prunable_scales(model):
        size = scale.detach().abs()
        small += int((size[mask] < SMALL * size.max()).sum())
        total += int(mask.sum())
    return small, total
