"""Each group of channels pruned alone, and the output divergence that follows."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.analysis.budgets import ProgressCallback
from edgeprune.analysis.findings import SHARE, GroupSensitivity
from edgeprune.pruning import budget, surgery
from edgeprune.pruning import cost as costs
from edgeprune.pruning.budget import Unit
from edgeprune.pruning.channels import Channels
from edgeprune.pruning.compensate import RIDGES
from edgeprune.pruning.features import Moments, moments
from edgeprune.pruning.plan import PrunePlan
from edgeprune.training import distill

#: Images on which the predictions are compared: 0.7 s a group for YOLOv8n at 320 px.
COMPARED = 16


def sensitivity(
    model: nn.Module, channels: Channels, scores: np.ndarray, units: list[Unit], pictures: torch.Tensor,
    judges: torch.Tensor, progress: ProgressCallback = lambda fraction, what: None,
) -> list[GroupSensitivity]:  # fmt: skip
    """Prune every unit alone, in the order of the network, and measure the output divergence.

    Args:
        model: the network.
        channels: its channels and groups.
        scores: score of each channel.
        units: the decisions of a plan.
        pictures: (N, 3, H, W) images to compensate with.
        judges: (M, 3, H, W) images to compare the predictions on.
        progress: receives the fraction done and a line of text.

    Returns:
        One `GroupSensitivity` a unit.
    """
    seen = moments(model, pictures, _solvable(model, channels))
    cost = costs.macs(channels)
    full = np.array([len(g.atoms) for g in channels.groups], dtype=float)
    before = predictions(model, judges)
    units = sorted(units, key=lambda unit: min(channels.groups[g].atoms.min() for g in unit.groups))
    found = []
    for i, unit in enumerate(units):
        layers = _layers(model, channels, unit)
        progress(i / len(units), f"group {i + 1}/{len(units)}")
        kept = unit.options.sum(1) / unit.options[0].sum()
        picked = int(np.argmin(np.abs(kept - (1 - SHARE))))
        without = full.copy()
        without[list(unit.groups)] = 0
        moved = None
        if picked > 0:
            keep = budget.mask(channels, scores, [unit], [picked])
            moved = divergence(before, predictions(alone(model, channels, keep, seen), judges))
        macs = float(1 - cost.of(without) / cost.of(full))
        found.append(GroupSensitivity(layers, int(unit.options[0].sum()), int(unit.options[picked].sum()), macs, moved))
    return found


def _layers(model: nn.Module, channels: Channels, unit: Unit) -> tuple[str, ...]:
    made = {name for g in unit.groups for name in channels.groups[g].producers}
    return tuple(n for n in channels.out if n in made and hasattr(model.get_submodule(n), "in_channels"))


def _solvable(model: nn.Module, channels: Channels) -> list[str]:
    """Ordinary convolutions (one group) whose input channels are traced."""
    modules = dict(model.named_modules())
    return [n for n in channels.inp if isinstance(modules[n], nn.Conv2d) and modules[n].groups == 1]


@torch.no_grad()
def alone(model: nn.Module, channels: Channels, keep: np.ndarray, seen: dict[str, Moments]) -> nn.Module:
    """Return a copy of full width in which removed atoms are silent, and only their readers are compensated.

    Args:
        model: the network.
        channels: its channels and groups.
        keep: (atoms,) bool; the atoms that stay.
        seen: the input moments of each convolution in `model`.
    """
    plan = PrunePlan.of(channels, keep, budget="alone", criterion="none")
    trial = surgery.masked(plan, model, channels)
    modules = dict(trial.named_modules())
    for name, moment in seen.items():
        conv = modules[name]
        silent = torch.from_numpy(np.repeat(~keep[channels.inp[name]], conv.kernel_size[0] * conv.kernel_size[1]))
        if not silent.any():
            continue
        stay, old = ~silent, conv.weight.flatten(1).double()
        gram = moment.gram[stay][:, stay]
        gram.diagonal().add_(RIDGES[0] * moment.gram.diagonal().mean().clamp_min(1e-12))
        new = torch.zeros_like(old)
        new[:, stay] = old[:, stay] + torch.linalg.solve(gram, moment.gram[stay][:, silent] @ old[:, silent].T).T
        conv.weight.copy_(new.view_as(conv.weight))
        lost = (old - new) @ moment.mean  # shift of each output's mean
        if conv.bias is not None:
            conv.bias.add_(lost)
        elif name in channels.norm_of:
            modules[channels.norm_of[name]].running_mean.sub_(lost)
    return trial


@torch.no_grad()
def predictions(model: nn.Module, pictures: torch.Tensor, *, at_once: int = 4) -> dict[str, torch.Tensor]:
    """Compute the outputs of the head before decoding; of two heads, those of the one-to-one head.

    Args:
        model: the network.
        pictures: (N, 3, H, W) images.
        at_once: images a forward pass.

    Returns:
        "scores" (N, classes, positions) and "boxes" (N, 4 * bins, positions).
    """
    model.eval()
    found = []
    for start in range(0, len(pictures), at_once):
        raw = model(pictures[start : start + at_once])[1]
        if "one2many" in raw:
            raw = raw["one2one"]  # the head that is exported
        found.append(raw)
    return {key: torch.cat([raw[key] for raw in found]) for key in ("boxes", "scores")}


def divergence(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """The output divergence of two predictions, summed over positions and averaged over images, in nats.

    It is the Kullback-Leibler divergence of the class probabilities plus, weighted by the confidence, that of the four
    distributions over distances. A head without such bins predicts distances alone; for it, the second term is their
    relative difference.

    Args:
        before: the outputs of `predictions` for the uncut network.
        after: the outputs for the pruned network, on the same images.
    """
    scores = before["scores"]
    truth = scores.sigmoid()
    moved = truth * (F.logsigmoid(scores) - F.logsigmoid(after["scores"]))
    moved += (1 - truth) * (F.logsigmoid(-scores) - F.logsigmoid(-after["scores"]))
    apart = distill.bins if before["boxes"].shape[1] > 4 else distill.distances
    boxes = 4 * apart(after["boxes"], before["boxes"]) * truth.amax(1)
    return float(moved.double().sum() + boxes.double().sum()) / len(scores)
