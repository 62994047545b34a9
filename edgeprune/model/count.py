"""The cost of a network, counted from its tensors: parameters, multiply-accumulates, channels."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Cost:
    """The cost of a network.

    Attributes:
        parameters: All values that training could change.
        macs: Multiply-accumulates of convolutions and linear layers for one image. GFLOPs as Ultralytics prints them
            are 2e-9 x macs.
        channels: Output channels of all convolutions.
    """

    parameters: int
    macs: int
    channels: int

    def to_json(self) -> dict:
        """The fields as a dictionary."""
        return asdict(self)


def count(model: nn.Module, imgsz: tuple[int, int]) -> Cost:
    """Count by running the model once on an empty image and reading the shapes of the layers that ran.

    Args:
        model: The network; it is not changed.
        imgsz: (H, W) of the image, px.
    """
    macs = channels = 0

    def seen(module, inputs, output):
        nonlocal macs, channels
        transposed = isinstance(module, nn.ConvTranspose2d)  # each input value meets all of its weights
        macs += (inputs[0] if transposed else output)[0].numel() * module.weight[0].numel()
        channels += module.out_channels if transposed else module.weight.shape[0]

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))]
    hooks = [m.register_forward_hook(seen) for m in layers]
    parameter, training = next(model.parameters()), model.training
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, 3, *imgsz, dtype=parameter.dtype, device=parameter.device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return Cost(sum(p.numel() for p in model.parameters()), macs, channels)


def widths(model: nn.Module) -> dict[str, int]:
    """{convolution: output channels}, in the order of the network."""
    return {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
