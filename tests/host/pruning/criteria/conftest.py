"""Fixture: the network for the criteria."""

import pytest

from ...small import network


@pytest.fixture
def small():
    """A network of YOLOv8's layers with known results."""
    return network(width=0.125)
