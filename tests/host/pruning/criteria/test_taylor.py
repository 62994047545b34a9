"""taylor: the estimated change of the loss."""

import copy

import numpy as np
import pytest
import torch
from ultralytics.utils import DEFAULT_CFG

from edgeprune.data.samples import Samples
from edgeprune.pruning import criteria
from edgeprune.pruning.channels import trace
from edgeprune.pruning.criteria.taylor import AT_ONCE

from ..samples import samples
from .planted import HIDDEN


class Frozen(torch.nn.Module):
    """Keeps the first assignment: the loss assigns boxes to anchors at each call, outside of the gradient."""

    def __init__(self, assigner):
        super().__init__()
        self.assigner, self.first = assigner, None

    def forward(self, *args):
        self.first = self.first or self.assigner(*args)
        return self.first


def losses(models, pictures):
    """The losses of all images as one batch, in float64, with the assignment of the first model."""
    batch = {k: v.double() for k, v in pictures.batch(0, len(pictures.pictures)).items()}
    torch.set_default_dtype(torch.float64)  # Ultralytics' loss makes tensors of the default type
    totals, assigner = [], None
    try:
        for model in models:
            model.args = DEFAULT_CFG
            model.criterion = model.init_criterion()
            assigner = model.criterion.assigner = assigner or Frozen(model.criterion.assigner)
            with torch.no_grad():
                totals.append(float(model.eval().loss(batch)[0].sum()))
    finally:
        torch.set_default_dtype(torch.float32)
    return totals


def scale(model, channels, atom, factor):
    """Scale every slice of the atom in place: filters, norm scales and shifts, biases, the readers' columns."""
    for name, atoms in channels.out.items():
        for parameter in model.get_submodule(name).parameters(recurse=False):
            parameter.data[atoms == atom] *= factor
    for name, atoms in channels.inp.items():
        model.get_submodule(name).weight.data[:, atoms == atom] *= factor


@pytest.mark.parametrize("layer", [HIDDEN, "model.2.m.0.cv2.conv", "model.22.cv3.0.0.conv"])
def test_taylor_agrees_with_a_finite_difference_of_the_loss(layer, small):
    """Scaling all slices of an atom by 1 + t changes the loss by t * score, for t near 0."""
    channels, pictures, step = trace(small), samples(), 1e-5
    assert len(pictures.pictures) <= AT_ONCE  # one batch, because the absolute value is taken per batch
    scores = criteria.load("taylor")(small, channels, pictures)
    for atom in channels.out[layer][:3]:
        less, more = copy.deepcopy(small).double(), copy.deepcopy(small).double()
        scale(less, channels, atom, 1 - step)
        scale(more, channels, atom, 1 + step)
        _, low, high = losses([copy.deepcopy(small).double(), less, more], pictures)
        slope = abs(high - low) / (2 * step) / len(pictures.pictures)
        assert scores[atom] == pytest.approx(slope, rel=1e-2)


def test_taylor_of_an_unread_channel_is_zero(small):
    channels = trace(small)
    small.get_submodule("model.2.m.0.cv2.conv").weight.data[:, 5] = 0
    scores = criteria.load("taylor")(small, channels, samples())[channels.out[HIDDEN]]
    assert scores[5] == 0 and np.sort(scores)[1] > 0


def test_taylor_takes_the_mean_of_absolute_values_over_batches(small):
    """If the changes of two batches cancelled, a channel that both need would have no cost."""
    channels, pictures = trace(small), samples(count=2 * AT_ONCE)
    other = Samples(torch.flip(pictures.pictures, [3]), pictures.labels)
    both = Samples(torch.cat([pictures.pictures[:AT_ONCE], other.pictures[:AT_ONCE]]), pictures.labels[:AT_ONCE] * 2)
    halves = [
        criteria.load("taylor")(small, channels, Samples(both.pictures[i : i + AT_ONCE], both.labels[:AT_ONCE]))
        for i in (0, AT_ONCE)
    ]
    np.testing.assert_allclose(criteria.load("taylor")(small, channels, both), np.mean(halves, axis=0), rtol=1e-5)
