"""count: parameters, multiply-accumulates and channels, compared with values computed by hand."""

import pytest
import torch
from torch import nn

from edgeprune.model import head, prepare
from edgeprune.model.count import Cost, count, widths

from .. import small


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.ConvTranspose2d(8, 4, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


def test_macs_of_every_layer_are_counted():
    parameters = (3 * 8 * 9 + 8) + 8 * 9 + (8 * 4 * 4 + 4) + (4 * 5 + 5)
    macs = 8 * 64 * 27 + 8 * 64 * 9 + 8 * 64 * 4 * 4 + 5 * 4  # 16 x 16 px in, 8 x 8 px after the stride
    assert count(network(), (16, 16)) == Cost(parameters, macs, 8 + 8 + 4 + 5)


def test_the_network_is_unchanged():
    model = network().train()
    count(model, (16, 16))
    assert model.training and not any(m._forward_hooks for m in model.modules())
    assert count(model.double(), (16, 16)).to_json().keys() == {"parameters", "macs", "channels"}
    assert all(p.dtype == torch.float64 for p in model.parameters())


def test_widths_lists_the_convolutions():
    assert widths(network()) == {"0": 8, "1": 8}


@pytest.mark.parametrize("which", head.HEADS)
def test_only_the_exported_head_is_counted(which):
    """The reference is the network that is exported, whose other head and batch norms are gone."""
    model = small.network("yolo26n.yaml", width=0.125)
    head.select(model, which)
    exported = prepare.prepare(model, (64, 64))
    counted, left = count(model, (64, 64)), count(exported, (64, 64))
    assert counted.macs == left.macs and counted.channels == left.channels
    one = sum(p.numel() for p in model.model[-1].one2one_cv2.parameters())
    assert counted.parameters < sum(p.numel() for p in model.parameters()) - one
    head.select(model, next(name for name in head.HEADS if name != which))
    assert count(model, (64, 64)) == counted  # the heads are copies of each other
