"""tracer: followed and frozen operators, in hand-made networks with known results."""

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.pruning import surgery
from edgeprune.pruning.channels import trace

from ..plans import random_plan
from .nets import Net, conv, group_of


def test_an_addition_couples_two_channels():
    c = trace(Net(lambda n, x: n.c(n.a(x) + n.b(x)), a=conv(3, 8), b=conv(3, 8), c=conv(8, 4)))
    np.testing.assert_array_equal(c.out["a"], c.out["b"])
    assert set(group_of(c, "a").producers) == {"a", "b"}


def test_a_concatenation_appends_and_a_depthwise_convolution_passes_on():
    def forward(n, x):
        a = n.a(x)
        return n.c(torch.cat([a, n.d(a), n.b(x)], 1))

    c = trace(Net(forward, a=conv(3, 8), d=conv(8, 8, 3, groups=8), b=conv(3, 4), c=conv(20, 2)))
    np.testing.assert_array_equal(c.out["d"], c.out["a"])
    np.testing.assert_array_equal(c.inp["c"], np.concatenate([c.out["a"], c.out["a"], c.out["b"]]))
    assert c.taps["d"] == 9


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x.flatten(2).softmax(1).view(x.shape),  # reads across channels
        lambda x: x.flatten(2).view(1, 8, 64, 64),  # a constant number
        lambda x: torch.zeros(1, x.shape[1], 64, 64),  # its width, used for another tensor
        lambda x: x * x.shape[1] ** -0.5,
        lambda x: x.split(4, 1)[0].repeat(1, 2, 1, 1),
        lambda x: sum(x.split((4, 4), 1)).repeat(1, 2, 1, 1),
        lambda x: x.sigmoid(),  # a masked channel would become one half
        lambda x: x + 1,
        lambda x: x / (x + x),
        lambda x: nn.functional.pad(x, (1, 1), value=1.0),
        lambda x: x * torch.arange(8.0).view(1, 8, 1, 1),  # a constant per channel that surgery cannot see
        lambda x: torch.cat([x[:, 4:], x[:, :4]], 1),  # a roll by slices
        lambda x: x.mean(1, keepdim=True).expand(-1, 8, -1, -1),
        lambda x: x.cumsum(1),
    ],
)
def test_unknown_operations_freeze_their_channels(mix):
    c = trace(Net(lambda n, x: n.c(n.b(mix(n.a(x)))), a=conv(3, 8), b=conv(8, 8), c=conv(8, 2)))
    assert group_of(c, "a").frozen
    assert not group_of(c, "b").frozen


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))

    def forward(self, x):
        return self.gamma.view(-1, self.gamma.shape[0], 1, 1) * x + self.beta[None, :, None, None]


class Parts(nn.Module):
    """Like CBLinear: the sizes are in a list of the module."""

    def __init__(self):
        super().__init__()
        self.sizes, self.conv = [8, 16], conv(8, 24)

    def forward(self, x):
        return self.conv(x).split(self.sizes, dim=1)


class Trains(nn.Module):
    """An auxiliary head that only runs in training."""

    def __init__(self):
        super().__init__()
        self.aux, self.head, self.norm = conv(8, 3), conv(8, 2), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.norm(x)
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


@pytest.mark.parametrize(
    ("forward", "layers"),
    [
        (lambda n, x: n.b(n.a(x).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)), {"b": conv(8, 2)}),
        (lambda n, x: n.b(n.a(x).flatten(2).view(len(x), -1, 64, 64)), {"b": conv(8, 2)}),
        (lambda n, x: n.b((y := n.a(x)).flatten(2).view(len(x), y.size(1), 64, 64)), {"b": conv(8, 2)}),
        (lambda n, x: n.b(torch.sum(torch.stack([n.a(x), n.d(x)]), dim=0)), {"d": conv(3, 8), "b": conv(8, 2)}),
        (lambda n, x: n.b(n.t(n.a(x)).relu()), {"t": nn.ConvTranspose2d(8, 6, 2, 2), "b": conv(6, 2)}),
        (lambda n, x: n.f(n.a(x).mean((2, 3))), {"f": nn.Linear(8, 2)}),
        (lambda n, x: n.g(n.f(n.a(x).flatten(2).transpose(1, 2)).relu()), {"f": nn.Linear(8, 6), "g": nn.Linear(6, 2)}),
        (lambda n, x: n.b((y := n.a(x)) * y.sigmoid()), {"b": conv(8, 2)}),
        (lambda n, x: n.b((y := n.a(x)) * n.m(y).sigmoid()), {"m": conv(8, 1), "b": conv(8, 2)}),
        (lambda n, x: n.b(n.s(n.a(x))), {"s": Scaled(), "b": conv(8, 2)}),
        (lambda n, x: n.b(torch.cat(n.p(n.a(x)), 1)), {"p": Parts(), "b": conv(24, 2)}),
        (lambda n, x: n.t(n.a(x)), {"t": Trains()}),
    ],
    ids=["permute", "view-1", "view-size", "stack", "transposed", "linear", "tokens", "gate", "mask", "scale", "parts",
         "trains"],
)  # fmt: skip
def test_known_operations_leave_channels_free_and_are_cut_exactly(forward, layers):
    net = Net(forward, a=conv(3, 8), **layers).double().eval()
    channels = trace(net)
    assert not group_of(channels, "a").frozen
    plan = random_plan(channels)
    cut, masked = surgery.apply(plan, net, channels), surgery.masked(plan, net, channels)
    assert len(cut.a.weight) < 8
    picture = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(cut(picture), masked(picture), rtol=1e-9, atol=1e-12)
        assert not torch.allclose(cut(picture), net(picture))
        cut.train()(picture)


def test_a_list_of_sizes_follows_its_parts():
    net = Net(lambda n, x: n.b(n.p(n.a(x))[1]), a=conv(3, 8), p=Parts(), b=conv(16, 2))
    channels = trace(net)
    cut = surgery.apply(random_plan(channels), net, channels)
    assert net.p.sizes == [8, 16] and cut.p.sizes[1] == cut.b.in_channels < 16
    assert sum(cut.p.sizes) == cut.p.conv.out_channels


def test_a_layer_called_twice_has_one_set_of_channels():
    c = trace(Net(lambda n, x: n.c(n.a(n.a(n.s(x)))), s=conv(3, 8), a=conv(8, 8), c=conv(8, 2)))
    np.testing.assert_array_equal(c.out["s"], c.out["a"])
