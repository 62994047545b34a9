"""bn_scale: the mean gamma of a channel's norms."""

import numpy as np

from edgeprune.pruning import criteria
from edgeprune.pruning.channels import trace


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
