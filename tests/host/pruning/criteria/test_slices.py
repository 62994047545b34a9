"""slices: the norms of all slices that make or read a channel (l1, l2, and their shared code)."""

import numpy as np
import pytest
import torch

from edgeprune.pruning import criteria
from edgeprune.pruning.channels import trace
from edgeprune.pruning.criteria._slices import sums

from .planted import HIDDEN


@pytest.mark.parametrize("name, p", [("l1", 1), ("l2", 2)])
def test_magnitude_is_the_norm_of_all_slices_in_units_of_the_group(name, p, small):
    channels = trace(small)
    scores = criteria.load(name)(small, channels, None)
    made, norm, read = (
        small.get_submodule(f"model.2.m.0.{layer}").weight.detach().double().abs() ** p
        for layer in ("cv1.conv", "cv1.bn", "cv2.conv")
    )
    total = made.sum((1, 2, 3)) + norm + read.sum((0, 2, 3))
    np.testing.assert_allclose(scores[channels.out[HIDDEN]], (total / total.mean()).numpy(), rtol=1e-6)
    for group in channels.groups:
        assert scores[group.atoms].mean() == pytest.approx(1)


def test_magnitude_counts_every_layer_of_a_coupled_channel(small):
    """The second half of a C2f with a shortcut: made by cv1 and the bottleneck's cv2, read by the bottleneck's cv1 and
    twice by the C2f's cv2."""
    channels = trace(small)
    atom = channels.out["model.2.m.0.cv2.conv"][3]
    half = len(channels.out["model.2.m.0.cv2.conv"])
    expected = 0.0
    for name, dim, index in [
        ("cv1.conv", 0, half + 3), ("cv1.bn", 0, half + 3), ("m.0.cv2.conv", 0, 3), ("m.0.cv2.bn", 0, 3),
        ("m.0.cv1.conv", 1, 3), ("cv2.conv", 1, half + 3), ("cv2.conv", 1, 2 * half + 3),
    ]:  # fmt: skip
        expected += float(
            small.get_submodule(f"model.2.{name}").weight.detach().double().select(dim, index).abs().sum()
        )
    assert sums(small, channels, torch.abs)[atom] == pytest.approx(expected, rel=1e-9)


def test_magnitude_reads_a_transposed_convolution_transposed():
    """Its weight is (in, out, kh, kw): with as many outputs as inputs, swapped dimensions would go unnoticed."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 1, bias=False), torch.nn.ConvTranspose2d(8, 8, 2, 2, bias=False), torch.nn.Conv2d(8, 3, 1)
    ).eval()
    model[1].weight.data.zero_()
    model[1].weight.data[2, 5] = 1.0
    channels = trace(model)
    total = sums(model, channels, torch.square)
    made, read = model[0].weight.square().sum((1, 2, 3)), model[2].weight.square().sum((0, 2, 3))
    made[2] += 4
    read[5] += 4
    np.testing.assert_allclose(total[channels.out["0"]], made.detach(), rtol=1e-5)
    np.testing.assert_allclose(total[channels.out["1"]], read.detach(), rtol=1e-5)


def test_a_group_of_zeros_costs_zero_without_a_division_by_zero(small):
    channels = trace(small)
    for layer in ("cv1.conv", "cv1.bn", "cv2.conv"):
        small.get_submodule(f"model.2.m.0.{layer}").weight.data.zero_()
    for name in ("l1", "l2", "lamp"):
        assert (criteria.load(name)(small, channels, None)[channels.out[HIDDEN]] == 0).all()
