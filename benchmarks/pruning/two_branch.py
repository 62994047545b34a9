"""The usual work-around for torch-pruning on YOLOv8: C2f with two convolutions in place of the stock chunk.

It follows torch-pruning's own YOLOv8 example and most repositories based on it. The file does not import edgeprune,
because every program that opens such a checkpoint needs this class.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from ultralytics.nn.modules import C2f, Conv


class TwoBranchC2f(nn.Module):
    """Computes the same as `stock`; the halves of its first convolution may be pruned to unequal counts."""

    def __init__(self, stock: C2f) -> None:
        super().__init__()
        self.cv0 = _part(stock.cv1, slice(0, stock.c))
        self.cv1 = _part(stock.cv1, slice(stock.c, None))
        self.cv2, self.m = stock.cv2, stock.m
        self.i, self.f, self.type, self.np = stock.i, stock.f, "TwoBranchC2f", getattr(stock, "np", 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = [self.cv0(x), self.cv1(x)]
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


def _part(whole: Conv, rows: slice) -> Conv:
    part = copy.deepcopy(whole)
    for module in (part.conv, part.bn):
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                if tensor is not None and tensor.ndim:
                    piece = tensor.detach()[rows].clone()
                    table[key] = nn.Parameter(piece) if isinstance(tensor, nn.Parameter) else piece
    part.conv.out_channels = part.bn.num_features = len(part.conv.weight)
    return part


def rewritten(model: nn.Module) -> nn.Module:
    """A copy of `model` with every C2f in two branches."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, C2f):
                setattr(parent, name, TwoBranchC2f(child))
    return model
