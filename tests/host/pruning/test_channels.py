"""channels: what belongs together, in hand-made networks where the answer is known, and in YOLO."""

import numpy as np
import pytest
import torch
from edgeprune_device.errors import InputError
from torch import nn

from edgeprune.pruning import surgery
from edgeprune.pruning.channels import trace

from ..plans import random_plan
from ..small import network


class Net(nn.Module):
    """Children by name, and a forward given as a function."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._run = forward

    def forward(self, x):
        return self._run(self, x)


def conv(i, o, k=1, groups=1):
    return nn.Conv2d(i, o, k, padding=k // 2, groups=groups)


def group_of(channels, layer):
    return next(g for g in channels.groups if layer in g.producers)


def free(group):
    """A hidden width: one convolution makes it, and nothing else is tied to it."""
    return not group.frozen and sum(not p.endswith("bn") for p in group.producers) == 1


def test_a_hidden_width_is_free_and_an_output_is_frozen():
    c = trace(Net(lambda n, x: n.b(n.a(x).relu()), a=conv(3, 8), b=conv(8, 4)))
    assert free(group_of(c, "a")) and group_of(c, "a").consumers == ("b",)
    assert group_of(c, "b").frozen
    assert c.prunable == 8
    np.testing.assert_array_equal(c.inp["b"], c.out["a"])


def test_an_addition_makes_two_channels_one():
    c = trace(Net(lambda n, x: n.c(n.a(x) + n.b(x)), a=conv(3, 8), b=conv(3, 8), c=conv(8, 4)))
    np.testing.assert_array_equal(c.out["a"], c.out["b"])
    assert set(group_of(c, "a").producers) == {"a", "b"}


def test_a_concatenation_appends_and_depthwise_passes_on():
    def forward(n, x):
        a = n.a(x)
        return n.c(torch.cat([a, n.d(a), n.b(x)], 1))

    c = trace(Net(forward, a=conv(3, 8), d=conv(8, 8, 3, groups=8), b=conv(3, 4), c=conv(20, 2)))
    np.testing.assert_array_equal(c.out["d"], c.out["a"])
    np.testing.assert_array_equal(c.inp["c"], np.concatenate([c.out["a"], c.out["a"], c.out["b"]]))
    assert c.taps["d"] == 9


def test_the_halves_of_a_chunk_are_tied():
    def forward(n, x):
        left, right = n.a(x).chunk(2, 1)
        return n.c(torch.cat([n.b(left), right], 1))

    c = trace(Net(forward, a=conv(3, 16), b=conv(8, 8), c=conv(16, 2)))
    assert len(c.ties) == 1
    assert [len(c.groups[g].atoms) for g in c.ties[0]] == [8, 8]


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x.flatten(2).softmax(1).view(x.shape),  # reads across channels
        lambda x: x.flatten(2).view(1, 8, 64, 64),  # a number that cannot follow
        lambda x: torch.zeros(1, x.shape[1], 64, 64),  # its width, used for something else
        lambda x: x * x.shape[1] ** -0.5,
        lambda x: x.split(4, 1)[0].repeat(1, 2, 1, 1),
        lambda x: sum(x.split((4, 4), 1)).repeat(1, 2, 1, 1),
        lambda x: x.sigmoid(),  # a silenced channel would come out as one half
        lambda x: x + 1,
        lambda x: x / (x + x),
        lambda x: nn.functional.pad(x, (1, 1), value=1.0),
        lambda x: x * torch.arange(8.0).view(1, 8, 1, 1),  # a constant per channel that surgery cannot see
        lambda x: torch.cat([x[:, 4:], x[:, :4]], 1),  # a roll by slices
        lambda x: x.mean(1, keepdim=True).expand(-1, 8, -1, -1),
        lambda x: x.cumsum(1),
    ],
)
def test_what_is_not_understood_is_frozen(mix):
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
    """As CBLinear: the sizes stand in a list of the module."""

    def __init__(self):
        super().__init__()
        self.sizes, self.conv = [8, 16], conv(8, 24)

    def forward(self, x):
        return self.conv(x).split(self.sizes, dim=1)


class Trains(nn.Module):
    """An auxiliary head that only training runs."""

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
def test_what_is_understood_is_free_and_cut_exactly(forward, layers):
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


def test_an_auxiliary_output_that_nothing_reads_stays():
    c = trace(Net(lambda n, x: ({"y": n.b(y := n.a(x))}, [y, n.c(y)]), a=conv(3, 8), b=conv(8, 2), c=conv(8, 4)))
    assert group_of(c, "c").frozen and not group_of(c, "a").frozen


def test_weights_that_two_layers_share_stay():
    net = Net(
        lambda n, x: n.d(n.c(n.a(n.s(x)) + n.b(n.s(x)))),
        s=conv(3, 8), a=conv(8, 8), b=conv(8, 8), c=conv(8, 8), d=conv(8, 2),
    )  # fmt: skip
    net.b.weight = net.a.weight
    channels = trace(net)
    assert group_of(channels, "s").frozen and not group_of(channels, "c").frozen
    assert "a" not in channels.out and "b" not in channels.out


def test_a_network_that_does_not_run_is_refused_by_name():
    with pytest.raises(InputError, match=r"Net: its channels cannot be followed \(RuntimeError: .*\)$"):
        trace(Net(lambda n, x: n.b(n.a(x)), a=conv(3, 8), b=conv(9, 2)))
    with pytest.raises(InputError, match="Net: nothing to prune"):
        trace(Net(lambda n, x: x.relu()))


def test_unequal_parts_are_frozen():
    def forward(n, x):
        left, right = n.a(x).split([4, 12], 1)
        return n.d(n.c(left) + n.b(right))

    c = trace(Net(forward, a=conv(3, 16), b=conv(12, 8), c=conv(4, 8), d=conv(8, 2)))
    assert all(g.frozen for g in c.groups if "a" in g.producers)


def test_a_layer_called_twice_has_one_set_of_channels():
    c = trace(Net(lambda n, x: n.c(n.a(n.a(n.s(x)))), s=conv(3, 8), a=conv(8, 8), c=conv(8, 2)))
    np.testing.assert_array_equal(c.out["s"], c.out["a"])


def test_nothing_to_prune_is_said():
    with pytest.raises(InputError, match="nothing to prune"):
        trace(Net(lambda n, x: n.a(x), a=conv(3, 8)))


def test_tracing_leaves_the_model_as_it_was(small):
    before = {k: v.clone() for k, v in small.state_dict().items()}
    small.train()
    small.model[0].eval()
    attributes = [{k: v for k, v in vars(m).items() if not k.startswith("_")} for m in small.modules()]
    trace(small)
    assert small.training and not small.model[0].training
    for module, known in zip(small.modules(), attributes):
        assert {k: v for k, v in vars(module).items() if not k.startswith("_")}.keys() == known.keys()
        assert all(getattr(module, k) is v for k, v in known.items())  # Detect remembers the shapes it saw
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


def test_yolov8n_as_the_paper_of_its_yaml_says():
    c = trace(network())
    assert len(c.ties) == 8  # one a C2f
    bottleneck = group_of(c, "model.2.m.0.cv2.conv")
    assert {"model.2.cv1.conv", "model.2.m.0.cv2.conv"} <= set(bottleneck.producers)
    assert free(group_of(c, "model.2.m.0.cv1.conv"))
    # The head: towers are free per level, its last convolutions and DFL are not; the neck's outputs are prunable.
    assert free(group_of(c, "model.22.cv3.1.0.conv"))
    assert group_of(c, "model.22.cv2.0.2").frozen and group_of(c, "model.22.dfl.conv").frozen
    assert not group_of(c, "model.15.cv2.conv").frozen
    # SPPF repeats one mask four times.
    np.testing.assert_array_equal(c.inp["model.9.cv2.conv"], np.tile(c.out["model.9.cv1.conv"], 4))
    assert c.norm_of["model.0.conv"] == "model.0.bn"
