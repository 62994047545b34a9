"""sessions: a network answers at the size that it was made ready for, as Ultralytics does."""

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
def test_a_session_keeps_as_many_rows_as_its_size_has_and_they_are_ultralytics_own(two, size, rows):
    session = TorchSession(two, size)
    (found,) = session.infer(noise(size))
    assert session.kind == END2END and found.shape == (1, rows, 6)
    two.model[-1].end2end = True  # what `nms=False` does
    try:
        with torch.inference_mode():
            theirs = two(torch.from_numpy(noise(size)))[0].numpy()
    finally:
        two.model[-1].end2end = False
    assert compare_outputs(theirs, found, END2END)[0] < 1e-2
    assert np.allclose(np.sort(theirs[0, :, 4]), np.sort(found[0, :, 4]), atol=1e-4)


def test_another_size_is_refused_and_not_answered_in_part(two):
    with pytest.raises(InputError, match=r"ready for \(64, 64\) px, not \(96, 96\)"):
        TorchSession(two, 64).infer(noise(96))
