"""Prunes each group of channels alone and measures the resulting output divergence."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from edgeprune_device.progress import Progress, silent
from torch import nn

from edgeprune.analysis.findings import SHARE, GroupSensitivity
from edgeprune.model.head import is_end2end
from edgeprune.pruning import budget, cost, surgery
from edgeprune.pruning.budget import Unit
from edgeprune.pruning.channels import Channels
from edgeprune.pruning.compensate import RIDGES
from edgeprune.pruning.features import Moments, moments
from edgeprune.pruning.layers import Floats, Mask, convolutions, norms
from edgeprune.pruning.plan import PrunePlan
from edgeprune.training import distill

#: Images on which the predictions are compared; they take 0.7 s per group for YOLOv8n at 320 px.
COMPARED = 16


def sensitivity(
    model: nn.Module, channels: Channels, scores: Floats, units: list[Unit], pictures: torch.Tensor,
    judges: torch.Tensor, progress: Progress = silent,
) -> list[GroupSensitivity]:  # fmt: skip
    """Prune every unit alone, in the order of the network, and measure the output divergence.

    Args:
        model: the network.
        channels: its channels and groups.
        scores: score of each channel.
        units: the decisions of a plan.
        pictures: (N, 3, H, W) images for compensation.
        judges: (M, 3, H, W) images on which the predictions are compared.
        progress: receives the fraction done and a line of text.

    Returns:
        One `GroupSensitivity` for each unit.
    """
    seen = moments(model, pictures, _solvable(model, channels))
    cost_model = cost.macs(channels)
    full = np.array([len(g.atoms) for g in channels.groups], dtype=float)
    before = predictions(model, judges)
    units = sorted(units, key=lambda unit: min(channels.groups[g].atoms.min() for g in unit.groups))
    sensitivities = []
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
        macs = float(1 - cost_model.of(without) / cost_model.of(full))
        width, left = int(unit.options[0].sum()), int(unit.options[picked].sum())
        sensitivities.append(GroupSensitivity(layers, width, left, macs, moved))
    return sensitivities


def _layers(model: nn.Module, channels: Channels, unit: Unit) -> tuple[str, ...]:
    made = {name for g in unit.groups for name in channels.groups[g].producers}
    return tuple(n for n in channels.out if n in made and isinstance(model.get_submodule(n), nn.modules.conv._ConvNd))


def _solvable(model: nn.Module, channels: Channels) -> list[str]:
    """Ordinary convolutions (one group) whose input channels are traced."""
    convs = convolutions(model)
    return [n for n in channels.inp if n in convs and convs[n].groups == 1]


@torch.no_grad()
def alone(model: nn.Module, channels: Channels, keep: Mask, seen: dict[str, Moments]) -> nn.Module:
    """A copy at full width that masks the removed atoms and compensates only the layers that read them.

    Args:
        model: the network.
        channels: its channels and groups.
        keep: (atoms,) bool; the atoms that stay.
        seen: the input moments of each convolution in `model`.
    """
    plan = PrunePlan.of(channels, keep, budget="alone", criterion="none")
    trial = surgery.masked(plan, model, channels)
    convs, means = convolutions(trial), norms(trial)
    for name, moment in seen.items():
        conv, norm = convs[name], means.get(channels.norm_of.get(name, ""))
        gone = torch.from_numpy(np.repeat(~keep[channels.inp[name]], conv.kernel_size[0] * conv.kernel_size[1])).to(
            moment.gram.device
        )
        if not gone.any():
            continue
        stay, old = ~gone, conv.weight.flatten(1).double()
        gram = moment.gram[stay][:, stay]
        gram.diagonal().add_(RIDGES[0] * moment.gram.diagonal().mean().clamp_min(1e-12))
        new = torch.zeros_like(old)
        new[:, stay] = old[:, stay] + torch.linalg.solve(gram, moment.gram[stay][:, gone] @ old[:, gone].T).T
        conv.weight.copy_(new.view_as(conv.weight))
        lost = (old - new) @ moment.mean  # shift of each output's mean
        if conv.bias is not None:
            conv.bias.add_(lost)
        elif norm is not None and norm.running_mean is not None:
            norm.running_mean.sub_(lost)
    return trial


@torch.no_grad()
def predictions(model: nn.Module, pictures: torch.Tensor, *, at_once: int = 4) -> dict[str, torch.Tensor]:
    """The outputs of the head before decoding. A network with two heads returns those of the exported one.

    Args:
        model: the network.
        pictures: (N, 3, H, W) images.
        at_once: images in each forward pass.

    Returns:
        "scores" (N, classes, positions) and "boxes" (N, 4 * bins, positions); for oriented boxes also "angle"
            (N, 1, positions), radians.
    """
    model.eval()
    outputs = []
    for start in range(0, len(pictures), at_once):
        raw = model(pictures[start : start + at_once])[1]
        if "one2many" in raw:
            raw = raw["one2one" if is_end2end(model) else "one2many"]
        outputs.append(raw)
    return {key: torch.cat([raw[key] for raw in outputs]) for key in ("boxes", "scores", "angle") if key in outputs[0]}


def divergence(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """The output divergence of two predictions, summed over positions and averaged over images, in nats.

    The first term is the Kullback-Leibler divergence of the class probabilities. The second, weighted by the
    confidence, is the divergence of the four distributions over distances. A head without these distributions predicts
    the distances directly; for it, the second term is their relative difference. The angles of oriented boxes add the
    square of the sine of their difference, because half a turn gives the same box.

    Args:
        before: the outputs of `predictions` for the unpruned network.
        after: the outputs for the pruned network, on the same images.
    """
    scores = before["scores"]
    truth = scores.sigmoid()
    moved = truth * (F.logsigmoid(scores) - F.logsigmoid(after["scores"]))
    moved += (1 - truth) * (F.logsigmoid(-scores) - F.logsigmoid(-after["scores"]))
    apart = distill.bins if before["boxes"].shape[1] > 4 else distill.distances
    boxes = 4 * apart(after["boxes"], before["boxes"]) * truth.amax(1)
    if "angle" in before:
        boxes = boxes + 4 * distill.turned(after["angle"], before["angle"]) * truth.amax(1)
    return float(moved.double().sum() + boxes.double().sum()) / len(scores)
