"""Plan, cut and compensate: one model in, a smaller one and its plan out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from edgeprune_device.errors import GateError, InputError
from torch import nn

from edgeprune import budget, criteria, surgery
from edgeprune.channels import Channels, trace
from edgeprune.compensate import compensate
from edgeprune.features import Samples
from edgeprune.plan import PrunePlan

#: What `--criterion auto` tries where there are pictures; the better is taken by measurement.
AUTO = ("energy", "bn_scale")
#: The cut model has to equal the masked original to this, relative, in float64.
ORACLE = 1e-9


@dataclass(frozen=True)
class Pruned:
    """model: the cut and compensated network; plan: what it keeps; solved: convolutions re-solved (0: no pictures);
    oracle: relative difference between surgery alone and masking, in float64."""

    model: nn.Module
    plan: PrunePlan
    solved: int
    oracle: float


def draft(
    model: nn.Module, channels: Channels, name: str, ratio: float, multiple: int, samples: Samples | None
) -> PrunePlan:
    """The plan of one criterion.

    Raises:
        InputError: unknown criterion, it wants pictures and there are none, or the ratio cannot be met.
    """
    criterion = criteria.load(name)
    if samples is None and criteria.needs_samples(criterion):
        raise InputError(f"criterion {name!r} looks at pictures: give --data data.yaml, or take --criterion bn_scale")
    keep = budget.choose(channels, criterion(model, channels, samples), ratio, multiple=multiple)
    return PrunePlan.of(channels, keep, ratio=ratio, criterion=name)


def cut(model: nn.Module, channels: Channels, plan: PrunePlan, samples: Samples | None) -> Pruned:
    """Surgery, the oracle, then compensation on the pictures if there are any.

    Raises:
        GateError: the oracle fails: a coupling was missed, and the model would be wrong.
    """
    pruned = surgery.apply(plan, model, channels)
    error = oracle(model, pruned, plan, channels)
    if not error <= ORACLE:
        raise GateError(
            f"surgery is not exact on this model: {error:.2e} relative (limit {ORACLE:g}); nothing was written. "
            "Please report the model's YAML"
        )
    solved = compensate(model, pruned, channels, plan, samples.pictures) if samples is not None else 0
    return Pruned(pruned, plan, solved, error)


def oracle(model: nn.Module, pruned: nn.Module, plan: PrunePlan, channels: Channels) -> float:
    """Largest relative difference, in float64, between the cut model and the original with the removed channels
    masked, on one random 64 x 64 picture."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, 64, 64, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        ours = list(_tensors(_double(pruned)(picture)))
        theirs = list(_tensors(_double(surgery.masked(plan, model, channels))(picture)))
    # Features that Ultralytics returns beside its outputs have become narrower; every output is compared.
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.shape == b.shape]
    # Not max(): it may lose a NaN, and a NaN has to fail.
    return float(torch.stack([(a - b).abs().max() / b.abs().max().clamp_min(1e-30) for a, b in pairs]).max())


def _double(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model).double().eval()


def _tensors(output):
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)


def choose(
    model: nn.Module,
    *,
    criterion: str,
    ratio: float,
    multiple: int,
    samples: Samples | None,
    score: Callable[[nn.Module], float | None] | None,
    step: Callable[[float, str], None] = lambda fraction, what: None,
) -> tuple[Pruned, dict[str, float | None]]:
    """Draft and cut by `criterion`; `auto` tries each of AUTO and takes the one whose model scores best before any
    fine-tuning (`score`: model -> mAP on training pictures that neither criterion nor compensation has seen).

    Returns the chosen one and the score of each that was tried (None: not measured).
    """
    channels = trace(model)
    if criterion != "auto":
        names = [criterion]
    else:
        names = list(AUTO) if samples is not None and score is not None else ["bn_scale"]
    tried: dict[str, float | None] = {}
    best: tuple[float, Pruned] | None = None
    refused: InputError | None = None
    for i, name in enumerate(names):
        step(i / len(names), f"{name}: choosing channels")
        try:
            plan = draft(model, channels, name, ratio, multiple, samples)
        except InputError as error:  # a fused model has no batch norms to rank by, and can be pruned all the same
            tried[name], refused = None, refused or error
            continue
        step((i + 0.5) / len(names), f"{name}: cutting and compensating")
        candidate = cut(model, channels, plan, samples)
        tried[name] = score(candidate.model) if score is not None and len(names) > 1 else None
        rank = -1.0 if tried[name] is None else tried[name]
        if best is None or rank > best[0]:
            best = (rank, candidate)
    if best is None:
        raise refused
    return best[1], tried
