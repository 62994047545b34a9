"""count: parameters, multiply-accumulates and channels, by hand."""

import torch
from torch import nn

from edgeprune.model.count import Cost, count, widths


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.ConvTranspose2d(8, 4, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


def test_every_layer_counts_what_it_multiplies():
    parameters = (3 * 8 * 9 + 8) + 8 * 9 + (8 * 4 * 4 + 4) + (4 * 5 + 5)
    macs = 8 * 64 * 27 + 8 * 64 * 9 + 8 * 64 * 4 * 4 + 5 * 4  # 16 x 16 px in, 8 x 8 px behind the stride
    assert count(network(), (16, 16)) == Cost(parameters, macs, 8 + 8 + 4 + 5)


def test_the_network_is_left_as_it_was():
    model = network().train()
    count(model, (16, 16))
    assert model.training and not any(m._forward_hooks for m in model.modules())
    assert count(model.double(), (16, 16)).to_json().keys() == {"parameters", "macs", "channels"}
    assert all(p.dtype == torch.float64 for p in model.parameters())


def test_widths_are_those_of_convolutions():
    assert widths(network()) == {"0": 8, "1": 8}
