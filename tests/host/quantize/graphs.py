"""Exported networks, their input images, and changes to their files."""

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from ultralytics.nn.tasks import DetectionModel

from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.quantize import reference_session

from ..small import settle

SIZE = 96


def exported(config, end2end=None):
    """A random detector whose features depend on the image as a trained one's do."""
    torch.manual_seed(0)
    model = DetectionModel(config, nc=4, verbose=False)
    settle(model, 4, SIZE, least=1.0)
    head = model.model[-1]
    for tower in (*(head.cv3 or ()), *(getattr(head, "one2one_cv3", None) or ())):
        tower[-1].weight.data.normal_(0, 0.2)
        tower[-1].bias.data.fill_(-3.0)
    return to_onnx(model.eval(), (SIZE, SIZE), end2end=end2end)


def pictures(count=4, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.random((1, 3, SIZE, SIZE), dtype=np.float32) for _ in range(count)]


def copied(model):
    clone = onnx.ModelProto()
    clone.CopyFrom(model)
    return clone


def run(model, picture):
    return reference_session(model).run(None, {"images": picture})[0]


def alike(expected, actual):
    """The correlation of the scores; single scores of a random network vary too much for a tolerance on each."""
    return np.corrcoef(expected[0, 4:].ravel(), actual[0, 4:].ravel())[0, 1]


def tensor(model, name):
    return next(t for t in model.graph.initializer if t.name == name)


def scale_weight(model, name, factor):
    t = tensor(model, name)
    t.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(t) * factor).astype(np.float32), name))
