"""Knowledge distillation: a detector learns from the original's answers beside the labels (Hinton, arXiv 1503.02531).

The teacher sees the augmented batch that the student sees. Its answer at every position is the target: its class scores
(soft labels), and its boxes where it is confident. Raw outputs have the same shape in the original and in the pruned
network, so no adapter is needed. Ultralytics' own `distill_model` compares neck features through adapters that are
trained from nothing, and puts them into the checkpoints.

Distillation is off by default. In runs of one to four epochs it was never better than the labels alone (HIT-UAV, 512
px, 70 steps: mAP50-95 0.372 with it, 0.402 without), and each step costs a forward pass of the teacher more. Longer
runs were not measured.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from edgeprune_device.errors import InputError
from torch import nn

from edgeprune.model.head import has_one_to_one

#: The weight of the teacher's part; the labels' part has the same gains and weight 1.
WEIGHT = 1.0


def check(student: nn.Module, teacher: nn.Module) -> None:
    """Check that two networks answer in the same form.

    Raises:
        InputError: They have other classes or another head.
    """
    ours, theirs = (_shape(m) for m in (student, teacher))
    if not hasattr(student.model[-1], "reg_max"):
        raise InputError(f"distillation knows Ultralytics' detection heads, not {type(student.model[-1]).__name__}")
    for what, a, b in zip(("classes", "strides", "box bins", "one-to-one head"), ours, theirs):
        if a != b:
            raise InputError(f"the teacher does not fit the model: its {what} are {b}, the model's {a}")


def _shape(model: nn.Module) -> tuple:
    head = model.model[-1]
    names = [str(model.names[i]).lower() for i in range(len(model.names))]
    strides = [int(s) for s in model.stride]
    return names, strides, getattr(head, "reg_max", None), has_one_to_one(model)


class Distilled:
    """A loss of Ultralytics with the teacher's part added.

    It takes the place of `model.criterion`, which is no part of the weights and is left out of checkpoints: the teacher
    adds nothing to a file.

    Args:
        loss: Ultralytics' loss.
        teacher: In eval mode, on the device of the batches.
        gains: The training arguments (`cls`, `box`, `dfl`).
    """

    def __init__(self, loss, teacher: nn.Module, gains) -> None:
        self._loss, self._teacher, self._gains = loss, teacher, gains

    def __call__(self, preds, batch: dict) -> tuple[torch.Tensor, dict]:
        """The loss of a batch, with the teacher's part as a further entry, and its items."""
        with torch.no_grad():
            taught = _branches(self._teacher(batch["img"]))
        loss, items = self._loss(preds, batch)
        parts = []
        for name, student in _branches(preds).items():
            share = {"one2many": "o2m", "one2one": "o2o"}.get(name)  # end-to-end losses shift between the two heads
            parts.append(self._part(student, taught[name]) * getattr(self._loss, share or "", 1.0))
        part = WEIGHT * torch.stack(parts).sum()
        return torch.cat([loss, part[None] * len(batch["img"])]), {**items, "distill_loss": part.detach()}

    def update(self) -> None:
        """Advance the schedule of the loss after each epoch, where it has one."""
        if hasattr(self._loss, "update"):
            self._loss.update()

    def _part(self, student: dict, teacher: dict) -> torch.Tensor:
        target = teacher["scores"].sigmoid()
        confidence = target.amax(1)  # (B, positions)
        total = confidence.sum().clamp(min=1)
        classes = _divergence(student["scores"], teacher["scores"], target).sum() / total
        if teacher["boxes"].shape[1] > 4:
            boxes, gain = bins(student["boxes"], teacher["boxes"]), self._gains.dfl
        else:
            boxes, gain = distances(student["boxes"], teacher["boxes"]), self._gains.box
        return self._gains.cls * classes + gain * (boxes * confidence).sum() / total


def _branches(preds) -> dict[str, dict]:
    """Name -> {"boxes": (B, 4 * bins, positions), "scores": (B, classes, positions)} of raw outputs, in either mode."""
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


def distances(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """(B, positions) difference of plain boxes, relative to the teacher's mean distance.

    For boxes that nearly agree it behaves as IoU does, and it is defined for boxes without area as well.

    Args:
        student: (B, 4, positions) distances from one point, in strides.
        teacher: The same of the teacher.
    """
    return (student - teacher).abs().mean(1) / teacher.abs().mean(1).clamp(min=1)
