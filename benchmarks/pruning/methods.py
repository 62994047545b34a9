"""The compared methods. A method takes the job and the fraction of MACs to keep, and returns its untrained states by
name; its fine-tuning starts from the last one.

`cut` is surgery alone. `recalibrated` has new batch-norm statistics from 64 training images, the default start of
fine-tuning. `compensated` is an additional state of our method.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from benchmarks.pruning import peers
from edgeprune.pruning import budget, criteria, prune, surgery
from edgeprune.pruning.budget import Budget
from edgeprune.pruning.channels import trace
from edgeprune.pruning.plan import PrunePlan

States = dict[str, nn.Module]


def control(job, macs: float) -> tuple[States, dict]:
    """The original, which is fine-tuned like the others."""
    return {"original": job.source.model}, {}


def ours(job, macs: float) -> tuple[States, dict]:
    """edgeprune with `--criterion energy --macs`."""
    model, ask = job.source.model, prune.PruneRequest(Budget("macs", macs), job.multiple)
    channels = trace(model)
    plan = prune.draft(model, channels, "energy", ask, job.solve)
    cut = surgery.apply(plan, model, channels)
    chosen = prune.cut(model, channels, plan, job.solve)
    return {**_recalibrated(job, cut), "compensated": chosen.model}, {"criterion": "energy"}


def scored(job, macs: float, *, criterion: str, uniform: bool) -> tuple[States, dict]:
    """Our surgery alone, with a criterion that needs no images."""
    channels = trace(job.source.model)
    scores = criteria.load(criterion)(job.source.model, channels, None)
    keep = budget.choose(channels, scores, Budget("macs", macs), multiple=job.multiple, uniform=uniform)
    plan = PrunePlan.of(channels, keep, budget=f"macs {macs:g}", criterion=criterion)
    return _recalibrated(job, surgery.apply(plan, job.source.model, channels)), {"criterion": criterion}


def torch_pruning(job, macs: float, *, importance: str) -> tuple[States, dict]:
    model, details = peers.prune(job.source.model, importance, macs, job.multiple, job.labelled)
    return _recalibrated(job, model), details


#: Uniform keeps the same fraction of every layer, the channels with the largest L1 norm.
METHODS: dict[str, Callable] = {
    "control": control,
    "ours": ours,
    "tp-bn": partial(torch_pruning, importance="bn"),
    "tp-magnitude": partial(torch_pruning, importance="magnitude"),
    "tp-taylor": partial(torch_pruning, importance="taylor"),
    "uniform": partial(scored, criterion="l1", uniform=True),
    "random": partial(scored, criterion="random", uniform=False),
}


def _recalibrated(job, cut: nn.Module) -> States:
    return {"cut": cut, "recalibrated": recalibrate(cut, job.labelled.pictures)}


@torch.no_grad()
def recalibrate(model: nn.Module, pictures: torch.Tensor, at_once: int = 8) -> nn.Module:
    """A copy whose batch norms have the mean statistics over batches of `pictures`, (N, 3, H, W)."""
    model = copy.deepcopy(model)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    model.train()
    for start in range(0, len(pictures), at_once):
        model(pictures[start : start + at_once])
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return model.eval()
