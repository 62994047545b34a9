"""Random detectors whose outputs depend on the image, and images."""

import numpy as np
import torch
from ultralytics.nn.tasks import DetectionModel

from .small import settle


def detector(config="yolov8n.yaml", seed=0):
    """A random detector with the batch-norm statistics of its own features, so that its outputs depend on the image as
    in a trained one; its scores differ between positions."""
    torch.manual_seed(seed)
    model = DetectionModel(config, nc=4, verbose=False)
    settle(model, 4, 96, least=1.0)
    head = model.model[-1]
    for tower in (*(head.cv3 or ()), *(getattr(head, "one2one_cv3", None) or ())):
        tower[-1].weight.data.normal_(0, 0.5)
        tower[-1].bias.data.fill_(-3.0)
    return model.eval()


def pictures(count, height, width):
    rng = np.random.default_rng(0)
    return [rng.random((1, 3, height, width), dtype=np.float32) for _ in range(count)]
