"""The cost of a network, counted from its tensors: parameters, multiply-accumulates, channels.

The head that is not exported (head.py) is not counted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from edgeprune.model.head import idle


@dataclass(frozen=True)
class Cost:
    """The cost of a network.

    Attributes:
        parameters: The number of all trainable values.
        macs: Multiply-accumulates of convolutions and linear layers for one image. Ultralytics' GFLOPs are 2e-9 x macs.
        channels: Output channels of all convolutions.
    """

    parameters: int
    macs: int
    channels: int

    def to_json(self) -> dict[str, int]:
        """The fields as a dictionary."""
        return asdict(self)


def count(model: nn.Module, imgsz: tuple[int, int]) -> Cost:
    """Count the cost with one forward pass on an empty image, from the shapes of the executed layers.

    Args:
        model: The network; it is not changed.
        imgsz: (H, W) of the image, px.
    """
    macs = channels = 0

    def add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal macs, channels
        transposed = isinstance(module, nn.ConvTranspose2d)  # each input value is multiplied by all of its weights
        macs += (inputs[0] if transposed else output)[0].numel() * module.weight[0].numel()
        channels += module.out_channels if transposed else module.weight.shape[0]

    exported = _exported(model)
    layers = [m for m in exported if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))]
    hooks = [m.register_forward_hook(add) for m in layers]
    parameter, training = next(model.parameters()), model.training
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, 3, *imgsz, dtype=parameter.dtype, device=parameter.device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    parameters = {id(p): p.numel() for m in exported for p in m.parameters(recurse=False)}
    return Cost(sum(parameters.values()), macs, channels)


def _exported(model: nn.Module) -> list[nn.Module]:
    """The modules of the exported network."""
    left_out = tuple(f"{name}." for name in idle(model))
    return [m for name, m in model.named_modules() if not f"{name}.".startswith(left_out)]


def widths(model: nn.Module) -> dict[str, int]:
    """{convolution: output channels}, in network order."""
    return {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
