"""Knowledge distillation: a detector learns from the original's outputs and the labels (Hinton, arXiv 1503.02531).

The teacher sees the same augmented batch as the student. Its output at every position is the target: its class scores
(soft labels), and its boxes weighted by its confidence. Raw outputs have the same shape in the original and in the
pruned network, so no adapter is needed. Ultralytics' own `distill_model` compares neck features through adapters that
are trained from scratch, and puts them into the checkpoints.

Distillation is off by default. In runs of one to four epochs it was never better than the labels alone (HIT-UAV, 512
px, 70 steps: mAP50-95 0.372 with it, 0.402 without), and each step needs an additional forward pass of the teacher.
Longer runs were not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from edgeprune_device.errors import InputError
from torch import nn

from edgeprune.model.head import last_layer, strides, two_heads

#: The weight of the teacher's loss; the labels' loss has the same gains and weight 1.
WEIGHT = 1.0
#: "boxes": (B, 4 * bins, positions) and "scores": (B, classes, positions), the raw outputs of Ultralytics' heads; for
#: oriented boxes also "angle": (B, 1, positions).
Branch = dict[str, torch.Tensor]
#: The items of a loss by name, as in Ultralytics' output.
Items = dict[str, torch.Tensor]


def check(student: nn.Module, teacher: nn.Module) -> None:
    """Check that two networks have outputs of the same form.

    Raises:
        InputError: Their classes or heads differ.
    """
    ours, theirs = (_shape(m) for m in (student, teacher))
    head = last_layer(student)
    if not hasattr(head, "reg_max"):
        raise InputError(
            f"distillation: unsupported head (found {type(head).__name__}, expected an Ultralytics detection head)"
        )
    for what, a, b in zip(("classes", "strides", "box bins", "one-to-one head"), ours, theirs):
        if a != b:
            raise InputError(f"teacher: does not match the model ({what}: teacher {b}, model {a})")


def _shape(model: nn.Module) -> tuple[list[str], list[int], int | None, bool]:
    numbered: Any = model.names
    names = [str(numbered[i]).lower() for i in range(len(numbered))]
    return names, strides(model), getattr(last_layer(model), "reg_max", None), two_heads(model)


class Distilled:
    """A loss of Ultralytics plus the teacher's loss.

    It replaces `model.criterion`, which is not part of the weights and is left out of checkpoints, so the teacher adds
    nothing to a file.

    Args:
        loss: Ultralytics' loss.
        teacher: In eval mode, on the device of the batches.
        gains: The training arguments (`cls`, `box`, `dfl`).
    """

    def __init__(self, loss: Callable[..., tuple[torch.Tensor, Items]], teacher: nn.Module, gains: Any) -> None:
        self._loss, self._teacher, self._gains = loss, teacher, gains

    def __call__(self, preds: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Items]:
        """The loss of a batch, with the teacher's loss as an additional entry, and its items."""
        with torch.no_grad():
            taught = _branches(self._teacher(batch["img"]))
        loss, items = self._loss(preds, batch)
        parts = []
        for name, student in _branches(preds).items():
            # end-to-end losses shift their weight between the two heads
            share = {"one2many": "o2m", "one2one": "o2o"}.get(name)
            weight: float = getattr(self._loss, share or "", 1.0)
            parts.append(self._part(student, taught[name]) * weight)
        part = WEIGHT * torch.stack(parts).sum()
        return torch.cat([loss, part[None] * len(batch["img"])]), {**items, "distill_loss": part.detach()}

    def update(self) -> None:
        """Advance the schedule of the loss, if it has one, after each epoch."""
        if hasattr(self._loss, "update"):
            self._loss.update()

    def _part(self, student: Branch, teacher: Branch) -> torch.Tensor:
        target = teacher["scores"].sigmoid()
        confidence = target.amax(1)  # (B, positions)
        total = confidence.sum().clamp(min=1)
        classes = _divergence(student["scores"], teacher["scores"], target).sum() / total
        if teacher["boxes"].shape[1] > 4:
            boxes, gain = bins(student["boxes"], teacher["boxes"]), self._gains.dfl
        else:
            boxes, gain = distances(student["boxes"], teacher["boxes"]), self._gains.box
        part: torch.Tensor = self._gains.cls * classes + gain * (boxes * confidence).sum() / total
        if "angle" in teacher:
            part = part + self._gains.box * (turned(student["angle"], teacher["angle"]) * confidence).sum() / total
        return part


def _branches(preds: Any) -> dict[str, Branch]:
    """Name -> branch of raw outputs, in training and in eval mode."""
    raw = preds[1] if isinstance(preds, (tuple, list)) else preds
    return raw if "one2many" in raw else {"": raw}


def _divergence(student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of Bernoulli scores for each entry; `student` and `teacher` are logits, target =
    sigmoid(teacher).
    """
    cross = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    return cross - F.binary_cross_entropy_with_logits(teacher, target, reduction="none")


def bins(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """(B, positions) divergence of the distributions over distances, mean of the four sides.

    Args:
        student: (B, 4 * bins, positions) logits.
        teacher: The same of the teacher.
    """
    batch, channels, positions = student.shape
    ours, theirs = (x.view(batch, 4, channels // 4, positions).log_softmax(2) for x in (student, teacher))
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(2).mean(1)


def turned(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """(B, positions) square of the sine of the difference of two angles: half a turn gives the same box.

    Args:
        student: (B, 1, positions) radians.
        teacher: The same of the teacher.
    """
    return (student - teacher).sin().square().squeeze(1)


def distances(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """(B, positions) difference of plain boxes, relative to the teacher's mean distance.

    For nearly equal boxes it behaves like IoU, and it is also defined for boxes without area.

    Args:
        student: (B, 4, positions) distances from one point, in strides.
        teacher: The same of the teacher.
    """
    return (student - teacher).abs().mean(1) / teacher.abs().mean(1).clamp(min=1)
