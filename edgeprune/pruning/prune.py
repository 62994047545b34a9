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


#: Rounds of choosing and re-solving on the way to the budget.
ROUNDS = 3

#: Largest relative difference between the pruned network and the masked original, in float64.
ORACLE = 1e-9


@dataclass(frozen=True)
class PruneRequest:
    """A prune request: a budget together with the constraints on the plan.

    Attributes:
        budget: The limit that the plan must meet.
        multiple: Kept counts are multiples of it where the full width is.
        imgsz: The side of the square image, px. Only the share of a linear layer in the cost depends on it.
        uniform: Every group gives the same share.
        portable: Only widths that an Ultralytics YAML can state (portable.py).
        latency: The latency model of a budget of kind `latency`.
    """

    budget: Budget
    multiple: int
    imgsz: int = 64
    uniform: bool = False
    portable: bool = False
    latency: Latency | None = None

    def cost(self, channels: Channels) -> CostModel | None:
        """The cost model that the budget counts by; None for a ratio, which counts channels."""
        if self.budget.kind == "ratio":
            return None
        if self.budget.kind == "latency":
            return self.latency.cost(channels)
        return cost.of(self.budget.kind, channels)

    def toward(self, original: Channels, now: Channels, steps: int) -> PruneRequest:
        """The request for the next of several equal steps to the budget.

        Args:
            original: The channels of the uncut network.
            now: The channels of the network that was cut out of it so far.
            steps: The number of steps that are left.
        """
        sizes = []
        for channels in (original, now):
            full = np.array([len(g.atoms) for g in channels.groups], dtype=float)
            counted = self.cost(channels)
            sizes.append(channels.prunable if counted is None else float(counted.of(full)))
        return replace(self, budget=self.budget.step(sizes[1] / sizes[0], steps))


@dataclass(frozen=True)
class Cut:
    """The result of surgery and compensation.

    Attributes:
        model: The pruned and compensated network.
        plan: The plan that it was cut to.
        solved: The number of re-solved convolutions; 0 without images.
        oracle: Relative difference between surgery alone and masking, in float64.
    """

    model: nn.Module
    plan: PrunePlan
    solved: int
    oracle: float


def trace_channels(model: nn.Module, imgsz: int) -> Channels:
    """The channels of `model`.

    The costs of convolutions all grow in proportion to the image, so a small image is traced. Where the network has a
    linear layer as well, an image of the real size is traced.
    """
    linear = any(isinstance(m, nn.Linear) for m in model.modules())
    return trace(model, (imgsz, imgsz)) if linear else trace(model)


def measured_budget(
    asked: Budget, model: nn.Module, imgsz: int, multiple: int, progress: Callable[[float, str], None]
) -> tuple[Budget, Latency | None, dict]:
    """The budget in a form that can be solved. Only a latency has to be measured, on the runtime at hand.

    Args:
        asked: The budget that the user gave.
        model: The network.
        imgsz: The side of the square image, px.
        multiple: Kept counts are multiples of it where the full width is.
        progress: called with the fraction done and a line of text.

    Returns:
        (budget, its latency model or None, its entry in the record of the build).
    """
    if not asked.kind.startswith("latency"):
        return asked, None, {}
    from edgeprune.pruning import latency

    found = latency.fit(model, trace_channels(model, imgsz), imgsz, multiple=multiple, progress=progress)
    if asked.kind == "latency_ms":
        asked = latency.budget(found, asked.value)
    return asked, found, {"latency": found.to_json()}


def draft(
    model: nn.Module, channels: Channels, name: str, ask: PruneRequest, samples: Samples | None,
    progress: Callable[[float, str], None] = lambda fraction, what: None,
) -> PrunePlan:  # fmt: skip
    """The plan of one importance criterion.

    A criterion that reads images chooses in ROUNDS rounds: the value of a channel changes when others have gone and
    their readers have been re-solved.

    Args:
        model: The network.
        channels: Its channels.
        name: The criterion: a name, `module:function`, or `auto` (criteria.resolve).
        ask: The prune request.
        samples: Labelled images, or None.
        progress: called with the fraction done and a line of text.

    Raises:
        InputError: The criterion is unknown, it needs images and there are none, or the budget cannot be met.
    """
    name = criteria.resolve(name, pictures=samples is not None)
    criterion = criteria.load(name)
    # A portable plan states widths of the network that the YAML describes, so it is made in one round.
    rounds = ROUNDS if criteria.needs_samples(criterion) and not ask.portable else 1
    plan, now, now_channels = None, model, channels
    for i in range(rounds):
        progress(i / rounds, f"{name}: choosing channels" + (f", {i + 1} of {rounds}" if rounds > 1 else ""))
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
    """((atoms,) bool, True = keep; the YAML of the plan, where the request is portable)."""
    layout = portable.read(model, channels, ask.multiple) if ask.portable else None
    units = budget.units(channels, scores, ask.multiple) if layout is None else layout.units(channels, scores)
    keep = budget.solve(channels, scores, units, ask.budget, uniform=ask.uniform, cost=ask.cost(channels))
    return keep, None if layout is None else layout.describe(channels, keep)


def cut(model: nn.Module, channels: Channels, plan: PrunePlan, samples: Samples | None) -> Cut:
    """Surgery, the oracle, then compensation if there are images.

    Args:
        model: The network; it is not changed.
        channels: Its channels.
        plan: The channels to keep.
        samples: Images for the compensation, or None.

    Raises:
        GateError: The oracle fails: a coupling was missed, and the pruned network would be wrong.
    """
    pruned = surgery.apply(plan, model, channels)
    try:
        error = oracle(model, pruned, plan, channels)
        found = f"{error:.2e} relative (limit {ORACLE:g})"
    except RuntimeError as mismatch:  # the trace missed that two widths belong together
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
    """Compare the pruned network with the original whose removed channels are masked, on one random 64 x 64 image.

    Args:
        model: The original.
        pruned: The network after surgery.
        plan: The plan that it was cut to.
        channels: The channels of the original.

    Returns:
        The largest relative difference of the outputs, in float64.
    """
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
    progress: Callable[[float, str], None] = lambda fraction, what: None,
) -> Cut:
    """Plan, cut and compensate a network.

    Args:
        model: The network; it is not changed.
        criterion: A name, `module:function`, or `auto` (criteria.resolve).
        ask: The prune request.
        samples: Labelled images, or None.
        progress: called with the fraction done and a line of text.
    """
    channels = trace_channels(model, ask.imgsz)
    plan = draft(model, channels, criterion, ask, samples, lambda fraction, what: progress(0.8 * fraction, what))
    progress(0.8, "cutting and compensating")
    return cut(model, channels, plan, samples)
