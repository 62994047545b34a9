"""Sparsity training: batch-norm scales learn to be zero before anything is cut (Network Slimming, arXiv 1708.06519).

The paper adds lambda * sign(gamma) to the gradient and steps with SGD. AdamW divides every gradient by its own
magnitude. A subgradient inside it would therefore pull hard on scales with small gradients and not at all on others,
whatever lambda is. Instead, each step of the optimiser is followed by the L1 norm's proximal step, a soft threshold, in
the way in which AdamW decouples weight decay (arXiv 1711.05101). A scale moves towards zero by lambda times the
learning rate's place in its schedule (1 at its peak). It stops at zero, and stays there unless the loss pulls harder.
AdamW moves a scale by the learning rate at most, so a lambda near or above the learning rate would empty the network.

Weight decay does not touch these scales: Ultralytics decays weights only.
"""

from __future__ import annotations

import torch
from torch import nn

from edgeprune.pruning.channels import trace

#: A channel whose scale is below this fraction of the largest of its layer contributes next to nothing.
SMALL = 1e-2


def prunable_scales(model: nn.Module) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """The scales of the batch norms that have prunable channels.

    Returns:
        For each such norm: its scale (C,), and a mask (C,) bool of its prunable channels.
    """
    channels = trace(model)
    free = torch.zeros(channels.atoms, dtype=torch.bool)
    for group in channels.groups:
        free[torch.from_numpy(group.atoms)] = not group.frozen
    modules = dict(model.named_modules())
    found = []
    for name, atoms in channels.out.items():
        mask = free[torch.from_numpy(atoms)]
        if isinstance(modules[name], nn.BatchNorm2d) and mask.any():
            found.append((modules[name].weight, mask.to(modules[name].weight.device)))
    return found


@torch.no_grad()
def shrink(scales: list[tuple[nn.Parameter, torch.Tensor]], amount: float) -> None:
    """The proximal step of amount * |scale|, in place: each scale moves towards zero by `amount`, never past it.

    Args:
        scales: As `prunable_scales` returns them.
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
