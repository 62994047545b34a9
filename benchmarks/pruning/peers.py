"""torch-pruning (Fang et al., DepGraph, arXiv 2301.12900), in its usual setup for YOLOv8.

C2f has two branches, the output convolutions are not pruned, ranking is global, in one step; importances have their
defaults, and counts are rounded like ours (`round_to`). Its pruning ratio is bisected until our counter gives the
requested MACs.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from importlib import metadata

import torch
from edgeprune_device.errors import EdgepruneError, InputError
from torch import nn

from benchmarks.pruning.two_branch import TwoBranchC2f, rewritten
from edgeprune.data.samples import Samples
from edgeprune.model.count import count
from edgeprune.pruning.features import default_loss

VERSION = "1.6.1"
#: The tolerance of the MACs.
WITHIN = 0.01
_SIDE = 64  # pixels; only proportions matter, which do not depend on the size
_BATCHES = 8  # for the Taylor importance

# checkpoint.load accepts only stock classes. This lets it open the other tool's files in this process, for the same
# evaluation and fine-tuning as all others.
torch.serialization.add_safe_globals([TwoBranchC2f])


def prune(model: nn.Module, importance: str, macs: float, multiple: int, samples: Samples) -> tuple[nn.Module, dict]:
    """A pruned copy of `model` and {"pruning_ratio"}.

    importance: bn, magnitude or taylor. macs: the fraction to keep. multiple: of kept counts. samples: labelled
    images for the loss of Taylor, in 8 batches.

    Raises:
        InputError: torch-pruning is not installed. EdgepruneError: the MACs cannot be met within 1 %.
    """
    importance = _importance(importance)
    whole = rewritten(model)
    _check_equal(model, whole)
    full = count(model, (_SIDE, _SIDE)).macs
    gradients = _gradients(whole, samples) if type(importance).__name__ == "GroupTaylorImportance" else None
    best, low, high, seen = (float("inf"), None, None), 0.0, 1.0, set()
    for _ in range(12):  # to one in four thousand channels, about the number of channels
        ratio = (low + high) / 2
        pruned = _pruned(whole, importance, ratio, multiple, gradients)
        share = count(pruned, (_SIDE, _SIDE)).macs / full
        best = min(best, (abs(share - macs), ratio, pruned), key=lambda candidate: candidate[0])
        if best[0] < WITHIN / 5 or (best[0] < WITHIN and share in seen):  # because rounded counts change in steps
            break
        seen.add(share)
        low, high = (ratio, high) if share > macs else (low, ratio)
    if best[0] > WITHIN:
        raise EdgepruneError(f"torch-pruning: no pruning_ratio gives {macs:.0%} of the MACs within {WITHIN:.0%}")
    return best[2], {"pruning_ratio": best[1]}


def _importance(name: str) -> Callable:
    try:
        installed = metadata.version("torch-pruning")  # its __version__ says 1.6.0
    except metadata.PackageNotFoundError:
        installed = "nothing"
    if installed != VERSION:
        raise InputError(
            f"the peer is torch-pruning {VERSION}, installed is {installed}: pip install torch-pruning=={VERSION}"
        )
    from torch_pruning import importance as kinds

    return {
        "bn": kinds.BNScaleImportance,
        "magnitude": lambda: kinds.GroupMagnitudeImportance(p=2),
        "taylor": kinds.GroupTaylorImportance,
    }[name]()


def _pruned(whole: nn.Module, importance: Callable, ratio: float, multiple: int, gradients: list | None) -> nn.Module:
    import torch_pruning

    model = copy.deepcopy(whole).eval().requires_grad_(True)
    if gradients is not None:  # a deep copy does not include them
        for parameter, gradient in zip(model.parameters(), gradients):
            parameter.grad = gradient.clone()
    head = model.model[-1]
    outputs = [
        tower[-1] for tower in (*head.cv2, *head.cv3, *getattr(head, "cv4", ()))
    ]  # cv4: angles of oriented boxes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_pruning.pruner.BasePruner(
            model,
            torch.zeros(1, 3, _SIDE, _SIDE),
            importance=importance,
            global_pruning=True,
            pruning_ratio=ratio,
            round_to=multiple,
            ignored_layers=[*outputs, head.dfl],
        ).step()
    model.zero_grad(set_to_none=True)
    return model


def _gradients(model: nn.Module, samples: Samples) -> list[torch.Tensor]:
    """The gradients of the real detection loss, summed over the batches, by parameter."""
    at_once = max(1, len(samples.pictures) // _BATCHES)
    model.eval().requires_grad_(True)
    with torch.enable_grad(), default_loss(model):
        for start in range(0, len(samples.pictures), at_once):
            loss, _ = model.loss(samples.batch(start, start + at_once))
            loss.sum().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return gradients


def _check_equal(stock: nn.Module, rewritten: nn.Module) -> None:
    """Check that the work-around computes the same outputs, or the comparison would be invalid."""
    x = torch.rand(1, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = (m.eval()(x)[0] for m in (stock, rewritten))
    if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4):
        raise EdgepruneError("the two-branch C2f does not compute what the stock one does")
