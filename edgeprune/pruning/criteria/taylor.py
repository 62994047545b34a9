"""Group Taylor: the change of the detection loss, to first order, if the weights of a channel became zero.

It is |sum of w * dL/dw| over every slice of the atom in the layers that make and read it, including the biases, since
they go with it. The absolute value is averaged over batches, because the gradient of a trained network averages to
nothing over the data (Molchanov et al., arXiv 1906.10771). The whole network has one scale: nothing is normalised.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgeprune.data.samples import Samples
from edgeprune.pruning.channels import Channels
from edgeprune.pruning.criteria._slices import sums
from edgeprune.pruning.features import default_loss

NEEDS_SAMPLES = True
#: Images of one batch.
AT_ONCE = 4


def score(model: nn.Module, channels: Channels, samples: Samples) -> np.ndarray:
    """Score each atom by the change of the loss without it, to first order.

    Args:
        model: The network.
        channels: Its channels.
        samples: Labelled training images.

    Returns:
        (atoms,) float64: |change of the loss of one image|.
    """
    total = np.zeros(channels.atoms)
    model.eval()
    with torch.enable_grad(), default_loss(model):
        for start in range(0, len(samples.pictures), AT_ONCE):
            model.zero_grad(set_to_none=True)
            loss, _ = model.loss(samples.batch(start, start + AT_ONCE))
            loss.sum().backward()
            total += np.abs(sums(model, channels, _change, biases=True))
    model.zero_grad(set_to_none=True)
    return total / len(samples.pictures)


def _change(parameter: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter * parameter.grad
