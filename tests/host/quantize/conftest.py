"""One exported network, the ranges of its tensors, and its INT8 file."""

import pytest

from edgeprune.quantize import calibrate, to_int8

from .graphs import exported, pictures


@pytest.fixture(scope="session")
def fp32():
    return exported("yolov8n.yaml")


@pytest.fixture(scope="session")
def ranges(fp32):
    return calibrate(fp32, pictures())


@pytest.fixture(scope="session")
def int8(fp32, ranges):
    return to_int8(fp32, ranges)
