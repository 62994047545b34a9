"""channels: coupled channels, in hand-made networks with known results and in YOLO."""

import numpy as np
import pytest
import torch
from edgeprune_device.errors import InputError

from edgeprune.pruning.channels import trace

from ..small import network
from .nets import Net, conv, free, group_of


def test_a_hidden_width_is_free_and_an_output_is_frozen():
    c = trace(Net(lambda n, x: n.b(n.a(x).relu()), a=conv(3, 8), b=conv(8, 4)))
    assert free(group_of(c, "a")) and group_of(c, "a").consumers == ("b",)
    assert group_of(c, "b").frozen
    assert c.prunable == 8
    np.testing.assert_array_equal(c.inp["b"], c.out["a"])


def test_the_halves_of_a_chunk_are_tied():
    def forward(n, x):
        left, right = n.a(x).chunk(2, 1)
        return n.c(torch.cat([n.b(left), right], 1))

    c = trace(Net(forward, a=conv(3, 16), b=conv(8, 8), c=conv(16, 2)))
    assert len(c.ties) == 1
    assert [len(c.groups[g].atoms) for g in c.ties[0]] == [8, 8]


def test_an_unread_auxiliary_output_is_kept():
    c = trace(Net(lambda n, x: ({"y": n.b(y := n.a(x))}, [y, n.c(y)]), a=conv(3, 8), b=conv(8, 2), c=conv(8, 4)))
    assert group_of(c, "c").frozen and not group_of(c, "a").frozen


def test_weights_shared_by_two_layers_are_kept():
    net = Net(
        lambda n, x: n.d(n.c(n.a(n.s(x)) + n.b(n.s(x)))),
        s=conv(3, 8), a=conv(8, 8), b=conv(8, 8), c=conv(8, 8), d=conv(8, 2),
    )  # fmt: skip
    net.b.weight = net.a.weight
    channels = trace(net)
    assert group_of(channels, "s").frozen and not group_of(channels, "c").frozen
    assert "a" not in channels.out and "b" not in channels.out


def test_a_network_that_does_not_run_is_refused_by_name():
    with pytest.raises(InputError, match=r"Net: channels cannot be traced \(RuntimeError: .*\)$"):
        trace(Net(lambda n, x: n.b(n.a(x)), a=conv(3, 8), b=conv(9, 2)))
    with pytest.raises(InputError, match="Net: nothing to prune"):
        trace(Net(lambda n, x: x.relu()))


def test_unequal_parts_are_frozen():
    def forward(n, x):
        left, right = n.a(x).split([4, 12], 1)
        return n.d(n.c(left) + n.b(right))

    c = trace(Net(forward, a=conv(3, 16), b=conv(12, 8), c=conv(4, 8), d=conv(8, 2)))
    assert all(g.frozen for g in c.groups if "a" in g.producers)


def test_a_network_with_nothing_to_prune_is_refused():
    with pytest.raises(InputError, match="nothing to prune"):
        trace(Net(lambda n, x: n.a(x), a=conv(3, 8)))


def test_tracing_does_not_change_the_model(small):
    before = {k: v.clone() for k, v in small.state_dict().items()}
    small.train()
    small.model[0].eval()
    attributes = [{k: v for k, v in vars(m).items() if not k.startswith("_")} for m in small.modules()]
    trace(small)
    assert small.training and not small.model[0].training
    for module, known in zip(small.modules(), attributes):
        assert {k: v for k, v in vars(module).items() if not k.startswith("_")}.keys() == known.keys()
        assert all(getattr(module, k) is v for k, v in known.items())  # Detect stores the shapes of its inputs
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


def test_the_channels_of_yolov8n_match_its_yaml():
    c = trace(network())
    assert len(c.ties) == 8  # one per C2f
    bottleneck = group_of(c, "model.2.m.0.cv2.conv")
    assert {"model.2.cv1.conv", "model.2.m.0.cv2.conv"} <= set(bottleneck.producers)
    assert free(group_of(c, "model.2.m.0.cv1.conv"))
    # The head's towers are free per level, but not its last convolutions and DFL; the neck's outputs are prunable.
    assert free(group_of(c, "model.22.cv3.1.0.conv"))
    assert group_of(c, "model.22.cv2.0.2").frozen and group_of(c, "model.22.dfl.conv").frozen
    assert not group_of(c, "model.15.cv2.conv").frozen
    # SPPF repeats one mask four times.
    np.testing.assert_array_equal(c.inp["model.9.cv2.conv"], np.tile(c.out["model.9.cv1.conv"], 4))
    assert c.norm_of["model.0.conv"] == "model.0.bn"
