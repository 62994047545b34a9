"""The network that the criteria score."""

import pytest

from ...small import network


@pytest.fixture
def small():
    """Of YOLOv8's own layers, whose answers are known."""
    return network(width=0.125)
