"""Plan, cut and compensate: one model in, a smaller one and its plan out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from edgeprune_device.errors import GateError
from torch import nn

from edgeprune.data.samples import Samples
from edgeprune.pruning import budget, cost, criteria, portable, surgery
from edgeprune.pruning.budget import Budget
from edgeprune.pruning.channels import Channels, trace
from edgeprune.pruning.compensate import compensate
from edgeprune.pruning.cost import CostModel
from edgeprune.pruning.plan import PrunePlan

if TYPE_CHECKING:
    from edgeprune.pruning.latency import Latency


#: Rounds of choosing and re-solving on the way to a budget.
ROUNDS = 3

#: The cut model has to equal the masked original to this, relative, in float64.
ORACLE = 1e-9


@dataclass(frozen=True)
class PruneRequest:
    """What is asked of a plan. budget: what may stay (or go); multiple: rounding of channel counts; imgsz: pixels of a
    picture, which the share of a classifier's last layer depends on, and nothing else; uniform: every
    group gives the same share; portable: only widths that Ultralytics' YAML can say (portable.py); latency: what a
    budget of that kind is measured by."""

    budget: Budget
    multiple: int
    imgsz: int = 64
    uniform: bool = False
    portable: bool = False
    latency: Latency | None = None

    def cost(self, channels: Channels) -> CostModel | None:
        """What the budget counts; None for a ratio, which counts channels."""
        if self.budget.kind == "ratio":
            return None
        if self.budget.kind == "latency":
            return self.latency.cost(channels)
        return cost.of(self.budget.kind, channels)

    def toward(self, original: Channels, now: Channels, steps: int) -> PruneRequest:
        """The first of `steps` equal steps from `now`, cut out of `original`, to the budget."""
        sizes = []
        for channels in (original, now):
            full = np.array([len(g.atoms) for g in channels.groups], dtype=float)
            counted = self.cost(channels)
            sizes.append(channels.prunable if counted is None else float(counted.of(full)))
        return replace(self, budget=self.budget.step(sizes[1] / sizes[0], steps))


@dataclass(frozen=True)
class Cut:
    """model: the cut and compensated network; plan: what it keeps; solved: convolutions re-solved (0: no pictures);
    oracle: relative difference between surgery alone and masking, in float64."""

    model: nn.Module
    plan: PrunePlan
    solved: int
    oracle: float


def trace_channels(model: nn.Module, imgsz: int) -> Channels:
    """The channels of `model`. The costs of convolutions grow alike with the picture, and are traced on a small one;
    where there is a linear layer beside them, on one of the real size."""
    linear = any(isinstance(m, nn.Linear) for m in model.modules())
    return trace(model, (imgsz, imgsz)) if linear else trace(model)


def measured_budget(
    asked: Budget, model: nn.Module, imgsz: int, multiple: int, step: Callable[[float, str], None]
) -> tuple[Budget, Latency | None, dict]:
    """A budget that can be solved for, what a latency is measured by, and what to note of it: only a latency needs
    measuring, on the runtime at hand."""
    if not asked.kind.startswith("latency"):
        return asked, None, {}
    from edgeprune.pruning import latency

    found = latency.fit(model, trace_channels(model, imgsz), imgsz, multiple=multiple, step=step)
    if asked.kind == "latency_ms":
        asked = latency.budget(found, asked.value)
    return asked, found, {"latency": found.to_json()}


def draft(
    model: nn.Module, channels: Channels, name: str, ask: PruneRequest, samples: Samples | None,
    step: Callable[[float, str], None] = lambda fraction, what: None,
) -> PrunePlan:  # fmt: skip
    """The plan of one criterion. One that looks at pictures chooses in ROUNDS: what a channel is worth changes when
    others have gone and their readers have been re-solved.

    Raises:
        InputError: unknown criterion, it wants pictures and there are none, or the budget cannot be met.
    """
    name = criteria.resolve(name, pictures=samples is not None)
    criterion = criteria.load(name)
    # A portable plan is stated in the widths of the network that the YAML describes: it is drawn at once.
    rounds = ROUNDS if criteria.needs_samples(criterion) and not ask.portable else 1
    plan, now, now_channels = None, model, channels
    for i in range(rounds):
        step(i / rounds, f"{name}: choosing channels" + (f", {i + 1} of {rounds}" if rounds > 1 else ""))
        part = ask if rounds == 1 else ask.toward(channels, now_channels, rounds - i)
        keep, yaml = _solve(now, now_channels, criterion(now, now_channels, samples), part)
        chosen = PrunePlan.of(now_channels, keep, budget=str(ask.budget), criterion=name, yaml=yaml)
        plan = chosen if plan is None else plan.then(chosen)
        if i < rounds - 1:
            now = surgery.apply(plan, model, channels)
            compensate(model, now, channels, plan, samples.pictures)
            now_channels = trace_channels(now, ask.imgsz)
    return plan


def _solve(
    model: nn.Module, channels: Channels, scores: np.ndarray, ask: PruneRequest
) -> tuple[np.ndarray, dict | None]:  # fmt: skip
    """((atoms,) bool, what stays; its YAML, if asked for)."""
    layout = portable.read(model, channels, ask.multiple) if ask.portable else None
    units = budget.units(channels, scores, ask.multiple) if layout is None else layout.units(channels, scores)
    keep = budget.solve(channels, scores, units, ask.budget, uniform=ask.uniform, cost=ask.cost(channels))
    return keep, None if layout is None else layout.describe(channels, keep)


def cut(model: nn.Module, channels: Channels, plan: PrunePlan, samples: Samples | None) -> Cut:
    """Surgery, the oracle, then compensation on the pictures if there are any.

    Raises:
        GateError: the oracle fails: a coupling was missed, and the model would be wrong.
    """
    pruned = surgery.apply(plan, model, channels)
    try:
        error = oracle(model, pruned, plan, channels)
        found = f"{error:.2e} relative (limit {ORACLE:g})"
    except RuntimeError as mismatch:  # two widths that belong together were not seen to
        error, found = float("nan"), str(mismatch).splitlines()[0]
    if not error <= ORACLE:
        raise GateError(
            f"surgery is not exact on this {type(model).__name__}: {found}; nothing was written. "
            "Please report the model's YAML"
        )
    if plan.yaml is not None:
        portable.stamp(pruned, plan.yaml)
    solved = compensate(model, pruned, channels, plan, samples.pictures) if samples is not None else 0
    return Cut(pruned, plan, solved, error)


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
    return copy.deepcopy(model).double().eval()


def _tensors(output):
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)


def prune_network(
    model: nn.Module,
    *,
    criterion: str,
    ask: PruneRequest,
    samples: Samples | None,
    step: Callable[[float, str], None] = lambda fraction, what: None,
) -> Cut:
    """Plan and cut. criterion: a name, module:function, or auto (criteria.resolve)."""
    channels = trace_channels(model, ask.imgsz)
    plan = draft(model, channels, criterion, ask, samples, lambda fraction, what: step(0.8 * fraction, what))
    step(0.8, "cutting and compensating")
    return cut(model, channels, plan, samples)
