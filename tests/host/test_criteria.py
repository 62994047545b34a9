"""criteria: each on a network where the answer is known."""

import numpy as np
import pytest
import torch
from edgeprune_device.errors import InputError

from edgeprune import criteria
from edgeprune.channels import trace
from edgeprune.features import Samples, moments


def samples(count=4, size=96):
    generator = torch.Generator().manual_seed(1)
    boxes = np.array([[0, 0.5, 0.5, 0.4, 0.4], [1, 0.25, 0.25, 0.2, 0.3]])
    return Samples(torch.rand(count, 3, size, size, generator=generator), (boxes,) * count)


def test_every_file_is_a_criterion():
    assert {"bn_scale", "energy"} <= set(criteria.names())
    for name in criteria.names():
        assert callable(criteria.load(name))


def test_unknown_names_offer_the_near_ones():
    with pytest.raises(InputError, match="did you mean bn_scale"):
        criteria.load("bnscale")
    with pytest.raises(InputError, match="criterion 'json:nothing'"):
        criteria.load("json:nothing")


def own(model, channels, samples):
    return np.arange(channels.atoms, dtype=float)


def test_a_users_own(monkeypatch, small):
    import sys
    import types

    module = types.ModuleType("mine")
    module.own = own
    monkeypatch.setitem(sys.modules, "mine", module)
    assert criteria.load("mine:own") is own


def test_bn_scale_is_the_mean_gamma_of_the_norms_that_scale_an_atom(small):
    channels = trace(small)
    scores = criteria.load("bn_scale")(small, channels, None)
    gamma = small.get_submodule("model.0.bn").weight.detach().abs()
    np.testing.assert_allclose(scores[channels.out["model.0.bn"]], gamma.numpy(), rtol=1e-6)
    first = small.get_submodule("model.2.cv1.bn").weight.detach().abs()
    second = small.get_submodule("model.2.m.0.cv2.bn").weight.detach().abs()
    half = len(second)
    np.testing.assert_allclose(
        scores[channels.out["model.2.m.0.cv2.bn"]], ((first[half:] + second) / 2).numpy(), rtol=1e-6
    )


def group_scores(model, layer):
    channels = trace(model)
    scores = criteria.load("energy")(model, channels, samples())
    return scores[channels.out[layer]], scores, channels


def test_energy_gives_a_finite_cost_to_all_that_can_go(small):
    _, scores, channels = group_scores(small, "model.0.conv")
    free = np.concatenate([g.atoms for g in channels.groups if not g.frozen])
    assert np.isfinite(scores[free]).all() and (scores[free] >= 0).all()
    frozen = np.concatenate([g.atoms for g in channels.groups if g.frozen])
    assert np.isinf(scores[frozen]).all()


def test_energy_takes_a_channel_that_nobody_reads_first(small):
    reader = small.get_submodule("model.2.m.0.cv2.conv")
    reader.weight.data[:, 5] = 0
    scores, _, _ = group_scores(small, "model.2.m.0.cv1.conv")
    assert scores.argmin() == 5 and scores[5] < 1e-6 * np.sort(scores)[1]


def test_energy_knows_that_a_twin_can_stand_in(small):
    """Channels 2 and 6 carry the same signal: the first of them to go costs next to nothing, though both are read.
    Magnitude and output energy without repair would call both dear."""
    conv, norm = small.get_submodule("model.2.m.0.cv1.conv"), small.get_submodule("model.2.m.0.cv1.bn")
    conv.weight.data[6] = conv.weight.data[2]
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor[6] = tensor[2]
    scores, _, _ = group_scores(small, "model.2.m.0.cv1.conv")
    assert int(scores.argmin()) in (2, 6)
    assert scores.min() < 0.05 * np.median(scores)
    # Only one of the two: once its twin has gone, the other has nobody to stand in for it.
    assert max(scores[2], scores[6]) > 5 * min(scores[2], scores[6])


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


def test_network_is_unchanged(small):
    before = {k: v.clone() for k, v in small.state_dict().items()}
    group_scores(small, "model.0.conv")
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
    assert all(p.grad is None for p in small.parameters())
