"""energy: what is lost once the readers are solved anew."""

import numpy as np

from edgeprune.pruning import criteria
from edgeprune.pruning.channels import trace

from ..samples import samples


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
