"""Fixtures: networks that are traced once."""

import pytest

from edgeprune.pruning import criteria
from edgeprune.pruning.channels import trace

from ..small import network, short


@pytest.fixture(scope="session")
def yolo():
    model = network()
    channels = trace(model)
    return channels, criteria.load("bn_scale")(model, channels, None)


@pytest.fixture(scope="session")
def nano():
    model = short()
    return model, trace(model)
