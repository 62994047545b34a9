"""energy: the loss after the readers have been refitted."""

import numpy as np
import pytest
import torch

from edgeprune.model import head
from edgeprune.pruning import criteria
from edgeprune.pruning.channels import trace
from edgeprune.pruning.criteria import energy
from edgeprune.pruning.prune import trace_channels

from ...small import network
from ..samples import samples


def group_scores(model, layer):
    channels = trace(model)
    scores = criteria.load("energy")(model, channels, samples())
    return scores[channels.out[layer]], scores, channels


def test_energy_is_finite_for_every_prunable_channel(small):
    _, scores, channels = group_scores(small, "model.0.conv")
    free = np.concatenate([g.atoms for g in channels.groups if not g.frozen])
    assert np.isfinite(scores[free]).all() and (scores[free] >= 0).all()
    frozen = np.concatenate([g.atoms for g in channels.groups if g.frozen])
    assert np.isinf(scores[frozen]).all()


def test_energy_is_lowest_for_an_unread_channel(small):
    reader = small.get_submodule("model.2.m.0.cv2.conv")
    reader.weight.data[:, 5] = 0
    scores, _, _ = group_scores(small, "model.2.m.0.cv1.conv")
    assert scores.argmin() == 5 and scores[5] < 1e-6 * np.sort(scores)[1]


def test_energy_is_low_for_one_of_two_equal_channels(small):
    """Channels 2 and 6 carry the same signal: removing the first one costs almost nothing, though both are read.
    Magnitude, and output energy without refitting, would rate both as expensive."""
    conv, norm = small.get_submodule("model.2.m.0.cv1.conv"), small.get_submodule("model.2.m.0.cv1.bn")
    conv.weight.data[6] = conv.weight.data[2]
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor[6] = tensor[2]
    scores, _, _ = group_scores(small, "model.2.m.0.cv1.conv")
    assert int(scores.argmin()) in (2, 6)
    assert scores.min() < 0.05 * np.median(scores)
    # Only one of the two: after its removal no other channel can replace its twin.
    assert max(scores[2], scores[6]) > 5 * min(scores[2], scores[6])


@pytest.mark.parametrize("which", head.HEADS)
def test_only_the_towers_of_an_exported_one_to_one_head_cost_more(which, monkeypatch):
    model = network("yolo26n.yaml", width=0.125)
    head.select(model, which)
    channels = trace_channels(model, 96)
    factors = []
    for factor in (1.0, energy.ONE_TO_ONE):
        monkeypatch.setattr(energy, "ONE_TO_ONE", factor)
        factors.append(energy.score(model, channels, samples()))
    towers = np.zeros(channels.atoms, dtype=bool)
    for group in channels.groups:
        towers[group.atoms] = bool(group.producers) and all("one2one" in name for name in group.producers)
    finite = np.isfinite(factors[0])
    expected = np.where(towers & (which == head.ONE_TO_ONE), 16.0, 1.0)
    assert (towers & finite).any() == (which == head.ONE_TO_ONE)
    np.testing.assert_allclose(factors[1][finite], (expected * factors[0])[finite])


def test_the_factorisation_ranks_as_a_full_update_of_the_inverse():
    """Every cost equals that with the inverse of the moments of the remaining columns."""
    generator = torch.Generator().manual_seed(0)
    size, count, outputs = 9, 12, 5
    x = torch.randn(400, size * count, generator=generator, dtype=torch.float64)
    gram = x.T @ x / len(x)
    weight = torch.randn(outputs, size * count, generator=generator, dtype=torch.float64)
    block = energy._Block(weight.clone(), torch.linalg.inv(gram), size)
    alive, removed = torch.arange(count), []
    for atoms in ([3], [7, 1], [11]):
        block.remove(torch.tensor(atoms))
        removed += atoms
        alive = torch.tensor([i for i in range(count) if i not in removed])
        kept = (alive[:, None] * size + torch.arange(size)).flatten()
        gone = torch.tensor([c for c in range(size * count) if c not in set(kept.tolist())])
        # The remaining weights after the removed columns have been refitted: W_k + W_g G_gk G_kk^-1.
        inverse = torch.linalg.inv(gram[kept][:, kept])
        solved = weight[:, kept] + weight[:, gone] @ gram[gone][:, kept] @ inverse
        for i, cost in enumerate(block.cost(alive)):
            own = slice(i * size, (i + 1) * size)
            expected = torch.trace(solved[:, own] @ torch.linalg.inv(inverse[own, own]) @ solved[:, own].T)
            assert float(cost) == pytest.approx(float(expected), rel=1e-9)
