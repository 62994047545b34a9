"""Group Taylor: the change of the detection loss, to first order, if the weights of a channel became zero.

It is |sum of w * dL/dw| over every slice of the atom in the layers that make and read it, including the biases, which
are removed with it. The absolute value is averaged over batches, because the gradient of a trained network averages to
zero over the data (Molchanov et al., arXiv 1906.10771). The scores are not normalised: the network has one scale.
"""

from __future__ import annotations

import numpy as np
import torch
from edgeprune_device.progress import Progress, silent
from torch import nn

from edgeprune.data.samples import Samples
from edgeprune.pruning.channels import Channels
from edgeprune.pruning.criteria._slices import sums
from edgeprune.pruning.features import default_loss
from edgeprune.pruning.layers import Floats

NEEDS_SAMPLES = True
#: Images per batch.
AT_ONCE = 4


def score(model: nn.Module, channels: Channels, samples: Samples, progress: Progress = silent) -> Floats:
    """Score each atom by the change of the loss without it, to first order.

    Args:
        model: The network.
        channels: Its channels.
        samples: Labelled training images.
        progress: Receives the fraction done and a line of text.

    Returns:
        (atoms,) float64: |change of the loss of one image|.
    """
    total, images = np.zeros(channels.atoms), len(samples.pictures)
    model.eval()
    with torch.enable_grad(), default_loss(model) as loss:
        for start in range(0, images, AT_ONCE):
            model.zero_grad(set_to_none=True)
            torch.autograd.backward(loss(samples.batch(start, start + AT_ONCE)))
            total += np.abs(sums(model, channels, _change, biases=True))
            done = min(start + AT_ONCE, images)
            progress(done / images, f"{done}/{images} images")
    model.zero_grad(set_to_none=True)
    return total / images


def _change(parameter: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter * parameter.grad
