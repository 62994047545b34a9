"""features: moments of what the layers read."""

import pytest
import torch

from edgeprune.pruning.features import moments

from ..small import network
from .samples import samples


@pytest.fixture
def small():
    return network(width=0.125)


def test_moments_are_those_of_the_whole_map(small):
    """Sampled patches against the full unfold."""
    pictures = samples().pictures
    name = "model.0.conv"
    layer = small.get_submodule(name)
    x = torch.nn.functional.unfold(pictures, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)
    full = torch.cov(x.T, correction=0).double()
    found = moments(small, pictures, [name])[name]
    assert found.rows > 1000 and layer.in_channels == 3
    assert float((found.gram - full).abs().max()) < 0.1 * float(full.diagonal().mean())
