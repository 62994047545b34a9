"""Plans, prunes and compensates: from a model to a smaller one and its plan."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from edgeprune_device.errors import GateError
from edgeprune_device.progress import Progress, part, silent
from edgeprune_device.size import Size
from torch import nn

from edgeprune.data.samples import Samples
from edgeprune.model.device import beside, exact
from edgeprune.model.head import idle
from edgeprune.pruning import budget, cost, criteria, portable, surgery
from edgeprune.pruning.budget import Budget
from edgeprune.pruning.channels import Channels, trace
from edgeprune.pruning.compensate import compensate
from edgeprune.pruning.cost import CostModel
from edgeprune.pruning.layers import Floats, Mask
from edgeprune.pruning.plan import PrunePlan

if TYPE_CHECKING:
    from edgeprune.pruning.latency import Latency


#: Rounds of selection and compensation on the way to the budget.
ROUNDS = 3

#: The image of a trace, if its size does not matter.
TRACED = Size(64, 64)

#: The share of a round's progress that the scores get; the compensation gets the rest.
_SCORING = 0.8

#: Largest relative difference between the pruned network and the masked original, in float64.
ORACLE = 1e-9


@dataclass(frozen=True)
class PruneRequest:
    """A prune request: a budget together with the constraints on the plan.

    Attributes:
        budget: The limit that the plan must meet.
        multiple: Kept counts are multiples of it where the full width is.
        imgsz: The side of a square input, or (height, width), px. Only the share of a linear layer in the cost depends
            on it.
        uniform: Every group loses the same share.
        portable: Only widths that an Ultralytics YAML can express (portable.py).
        latency: The latency model of a budget of kind `latency`.
    """

    budget: Budget
    multiple: int
    imgsz: int | Sequence[int] = TRACED
    uniform: bool = False
    portable: bool = False
    latency: Latency | None = None

    def cost(self, channels: Channels) -> CostModel | None:
        """The cost model of the budget; None for a ratio, which counts channels."""
        if self.budget.kind == "ratio":
            return None
        if self.budget.kind == "latency" and self.latency is not None:
            return self.latency.cost(channels)
        return cost.of(self.budget.kind, channels)

    def toward(self, original: Channels, now: Channels, steps: int) -> PruneRequest:
        """The request for the next of several equal steps to the budget.

        Args:
            original: The channels of the unpruned network.
            now: The channels of the current, partly pruned network.
            steps: The number of remaining steps.
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
        plan: The plan that it was pruned to.
        solved: The number of refitted convolutions; 0 without images.
        oracle: Relative difference between surgery alone and masking, in float64.
    """

    model: nn.Module
    plan: PrunePlan
    solved: int
    oracle: float


def trace_channels(model: nn.Module, imgsz: int | Sequence[int]) -> Channels:
    """The channels of `model`.

    The costs of all convolutions are proportional to the image, so a small image is traced. If the network also has a
    linear layer, an image of the real size is traced. The head that is not exported is idle.
    """
    linear = any(isinstance(m, nn.Linear) for m in model.modules())
    size = Size.of(imgsz) if linear else TRACED
    return trace(model, size, idle=idle(model))


def measured_budget(
    asked: Budget, model: nn.Module, imgsz: int | Sequence[int], multiple: int, progress: Progress
) -> tuple[Budget, Latency | None, dict[str, Any]]:
    """The budget in a form that can be solved. Only a latency needs a measurement, on the given runtime.

    Args:
        asked: The budget that the user gave.
        model: The network.
        imgsz: The side of a square input, or (height, width), px.
        multiple: Kept counts are multiples of it where the full width is.
        progress: Receives the fraction done and a line of text.

    Returns:
        (budget, its latency model or None, its entry in the record of the build).
    """
    if not asked.kind.startswith("latency"):
        return asked, None, {}
    from edgeprune.pruning import latency

    fitted = latency.fit(model, trace_channels(model, imgsz), imgsz, multiple=multiple, progress=progress)
    if asked.kind == "latency_ms":
        asked = latency.to_budget(fitted, asked.value)
    return asked, fitted, {"latency": fitted.to_json()}


@exact()
def draft(
    model: nn.Module, channels: Channels, name: str, ask: PruneRequest, samples: Samples | None,
    progress: Progress = silent,
) -> PrunePlan:  # fmt: skip
    """Make the plan with one importance criterion.

    A criterion that reads images works in ROUNDS rounds, because the importance of a channel changes after others have
    been removed and their readers have been refitted.

    Args:
        model: The network.
        channels: Its channels.
        name: The criterion: a name, `module:function`, or `auto` (criteria.resolve).
        ask: The prune request.
        samples: Labelled images, or None.
        progress: Receives the fraction done and a line of text.

    Raises:
        InputError: The criterion is unknown, it needs images and none are given, or the budget cannot be met.
    """
    name = criteria.resolve(name, pictures=samples is not None)
    criterion = criteria.load(name)
    if samples is not None:
        model = beside(model, samples.pictures)

    def choose(now: nn.Module, now_channels: Channels, part: PruneRequest, shown: Progress) -> PrunePlan:
        keep, yaml = _solve(now, now_channels, criterion(now, now_channels, samples, shown), part)
        return PrunePlan.of(now_channels, keep, budget=str(ask.budget), criterion=name, yaml=yaml)

    # A portable plan refers to widths of the network that the YAML describes, so it is made in one round.
    if samples is None or ask.portable or not criteria.needs_samples(criterion):
        progress(0.0, f"{name}: choosing channels")
        return choose(model, channels, ask, part(progress, 0, 1, f"{name}: choosing channels"))

    def shown(i: int, begin: float, end: float) -> Progress:
        what = f"{name}: choosing channels, {i + 1} of {ROUNDS}"
        progress((i + begin) / ROUNDS, what)
        return part(progress, (i + begin) / ROUNDS, (i + end) / ROUNDS, what)

    plan = choose(model, channels, ask.toward(channels, channels, ROUNDS), shown(0, 0, _SCORING))
    for i in range(1, ROUNDS):
        now = surgery.apply(plan, model, channels)
        compensate(model, now, channels, plan, samples.pictures, shown(i - 1, _SCORING, 1))
        now_channels = trace_channels(now, ask.imgsz)
        step = ask.toward(channels, now_channels, ROUNDS - i)
        plan = plan.then(choose(now, now_channels, step, shown(i, 0, _SCORING)))
    return plan


def _solve(
    model: nn.Module, channels: Channels, scores: Floats, ask: PruneRequest
) -> tuple[Mask, portable.Yaml | None]:
    """((atoms,) bool, True = keep; the YAML of the plan if the request is portable)."""
    layout = portable.read(model, channels, ask.multiple) if ask.portable else None
    units = budget.units(channels, scores, ask.multiple) if layout is None else layout.units(channels, scores)
    keep = budget.solve(channels, scores, units, ask.budget, uniform=ask.uniform, cost=ask.cost(channels))
    return keep, None if layout is None else layout.describe(channels, keep)


@exact()
def cut(
    model: nn.Module, channels: Channels, plan: PrunePlan, samples: Samples | None, progress: Progress = silent
) -> Cut:
    """Perform surgery, check it with the oracle, then compensate if images are given.

    Args:
        model: The network; it is not changed.
        channels: Its channels.
        plan: The channels to keep.
        samples: Images for the compensation, or None.
        progress: Receives the fraction done and a line of text.

    Raises:
        GateError: The oracle fails, because a coupling was missed and the pruned network would be wrong.
    """
    if samples is not None:
        model = beside(model, samples.pictures)
    pruned = surgery.apply(plan, model, channels)
    try:
        error = oracle(model, pruned, plan, channels)
        difference = f"{error:.2e} relative (limit {ORACLE:g})"
    except RuntimeError as mismatch:  # the trace missed a coupling of two widths
        error, difference = float("nan"), str(mismatch).splitlines()[0]
    if not error <= ORACLE:
        raise GateError(
            f"{type(model).__name__}: surgery is not exact ({difference}), so nothing was written; please report the "
            "model's YAML"
        )
    if plan.yaml is not None:
        portable.stamp(pruned, plan.yaml)
    solved = 0
    if samples is not None:
        shown = part(progress, 0, 1, "compensating")
        solved = compensate(model, pruned, channels, plan, samples.pictures, shown)
    return Cut(pruned.cpu(), plan, solved, error)


def oracle(model: nn.Module, pruned: nn.Module, plan: PrunePlan, channels: Channels) -> float:
    """Compare the pruned network with the original with masked channels, on one random 64 x 64 image.

    Args:
        model: The original.
        pruned: The network after surgery.
        plan: The plan that it was pruned to.
        channels: The channels of the original.

    Returns:
        The largest relative difference of the outputs, in float64.
    """
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, 64, 64, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        ours = list(_tensors(_double(pruned)(picture)))
        theirs = list(_tensors(_double(surgery.masked(plan, model, channels))(picture)))
    # Every output is compared; features that Ultralytics also returns have become narrower and are skipped.
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.shape == b.shape]
    # Not max(), which may ignore a NaN: a NaN must fail.
    return float(torch.stack([(a - b).abs().max() / b.abs().max().clamp_min(1e-30) for a, b in pairs]).max())


def _double(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).cpu().double().eval()


def _tensors(output: object) -> Iterator[torch.Tensor]:
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
    progress: Progress = silent,
) -> Cut:
    """Plan, prune and compensate a network.

    Args:
        model: The network; it is not changed.
        criterion: A name, `module:function`, or `auto` (criteria.resolve).
        ask: The prune request.
        samples: Labelled images, or None.
        progress: Receives the fraction done and a line of text.
    """
    channels = trace_channels(model, ask.imgsz)
    plan = draft(model, channels, criterion, ask, samples, part(progress, 0, 0.8))
    progress(0.8, "removing channels and compensating")
    return cut(model, channels, plan, samples, part(progress, 0.8, 1))
