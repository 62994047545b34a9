"""A small YOLO26 with as many classes as COCO, and what it looks at."""

import numpy as np

from .small import network

CLASSES = 80


def two_heads():
    """A YOLO26 with random weights, of as many classes as COCO: at 64 px its 84 rows look like 80 classes' scores."""
    model = network("yolo26n.yaml", width=0.125, nc=CLASSES)
    for tower in (*model.model[-1].cv3, *model.model[-1].one2one_cv3):
        tower[-1].weight.data *= 0.2  # no two scores are 1, in whatever order those would come
    return model


def noise(size, seed=0):
    return np.random.default_rng(seed).random((1, 3, size, size), dtype=np.float32)
