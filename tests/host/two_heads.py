"""A small YOLO26 with as many classes as COCO whose one-to-one head is exported, and images for it."""

import numpy as np

from edgeprune.model import head

from .small import network

CLASSES = 80


def two_heads():
    """A YOLO26 with random weights and as many classes as COCO: at 64 px its 84 rows look like the scores of 80
    classes.
    """
    model = network("yolo26n.yaml", width=0.125, nc=CLASSES)
    for tower in (*model.model[-1].cv3, *model.model[-1].one2one_cv3):
        tower[-1].weight.data *= 0.2  # avoid several scores of 1, whose order would be undefined
    head.select(model, head.ONE_TO_ONE)
    return model


def noise(size, seed=0):
    return np.random.default_rng(seed).random((1, 3, size, size), dtype=np.float32)
