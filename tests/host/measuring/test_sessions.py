"""sessions: a network runs at the size of its session, with the same results as in Ultralytics."""

import numpy as np
import pytest
import torch
from edgeprune_device.errors import InputError
from edgeprune_device.output import END2END

from edgeprune.exporting.parity import compare_outputs
from edgeprune.measuring.sessions import TorchSession

from ..two_heads import noise, two_heads


@pytest.fixture(scope="module")
def two():
    return two_heads()


@pytest.mark.parametrize("size, rows", [(64, 84), (96, 189), (160, 300)])
def test_session_returns_the_same_rows_as_ultralytics_at_every_size(two, size, rows):
    session = TorchSession(two, size)
    (output,) = session.infer(noise(size))
    assert session.kind == END2END and output.shape == (1, rows, 6)
    with torch.inference_mode():
        theirs = two(torch.from_numpy(noise(size)))[0].numpy()
    assert compare_outputs(theirs, output, END2END)[0] < 1e-2
    assert np.allclose(np.sort(theirs[0, :, 4]), np.sort(output[0, :, 4]), atol=1e-4)


def test_session_refuses_another_input_size(two):
    with pytest.raises(InputError, match=r"found 96 x 96, expected 64 x 64\); open a session for 96 x 96"):
        TorchSession(two, 64).infer(noise(96))
