"""prepare: unsupported sizes and heads are refused."""

import pytest
from edgeprune_device.errors import InputError

from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.model.prepare import prepare

from ..detectors import detector


@pytest.fixture
def v8():
    return detector()


def test_sizes_and_heads_that_do_not_exist_are_refused(v8):
    with pytest.raises(InputError, match="multiples of 32"):
        to_onnx(v8, (96, 100))
    with pytest.raises(InputError, match="one-to-one"):
        prepare(v8, (96, 96), end2end=True)
