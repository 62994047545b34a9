import numpy as np
import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.output import END2END, MAX_ROWS, RAW, checked, fits, shape_of


def test_the_shape_of_our_own_files_fits_what_is_stated():
    assert shape_of(RAW, classes=80, anchors=8400) == (1, 84, 8400)
    assert shape_of(END2END, classes=80, anchors=8400) == (1, MAX_ROWS, 6)
    assert shape_of(END2END, classes=80, anchors=84) == (1, 84, 6)
    for kind in (RAW, END2END):
        assert fits(shape_of(kind, 80, 8400), kind, 80)
    assert not fits((1, 84, 8400), END2END, 80) and not fits((1, 84, 8400), RAW, 79) and not fits((84, 6), END2END, 80)


def test_an_output_that_fits_comes_back_as_it_is():
    output = np.zeros((1, 84, 6))
    assert checked(output, RAW, 80) is output and checked(output, END2END, 2) is output
    with pytest.raises(InputError, match=r"shape \(1, 84, 6\), but it is stated to be raw, \(1, 6, N\) for 2 classes"):
        checked(output, RAW, 2)
