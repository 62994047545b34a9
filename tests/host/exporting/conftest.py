"""A detector and its ONNX file."""

import pytest

from edgeprune.exporting.to_onnx import to_onnx

from ..detectors import detector


@pytest.fixture(scope="session")
def v8():
    return detector()


@pytest.fixture(scope="session")
def v8_onnx(v8):
    return to_onnx(v8, (96, 160))
