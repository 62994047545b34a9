"""divergence: the distance between the outputs of two networks."""

import numpy as np
import pytest
from edgeprune_device.output import END2END, RAW

from edgeprune import quantize as q
from edgeprune.exporting.to_onnx import to_onnx

from ..outlier import SIZE, pictures
from ..small import short


@pytest.fixture(scope="module")
def fp32():
    return to_onnx(short(), (SIZE, SIZE))


def test_output_divergence_is_zero_for_equal_outputs_and_grows_with_their_differences(fp32):
    (picture,) = pictures(1)
    expected = q.reference_session(fp32).run(None, {"images": picture})[0]
    assert q.output_divergence(expected, expected, RAW)[0] == 0
    moved, weaker = expected.copy(), expected.copy()
    moved[0, 0] += 2.0
    weaker[0, 4:] *= 0.9
    differs, total = q.output_divergence(expected, moved, RAW)
    assert 0 < differs < total
    differs, total = q.output_divergence(expected, weaker, RAW)
    seen = expected[0, 4:][:, expected[0, 4:].max(0) > 0.01]
    assert differs == pytest.approx(0.1 * seen.sum(), rel=0.01)


def test_output_divergence_ignores_the_order_of_end_to_end_rows():
    rows = np.array([[[0, 0, 10, 10, 0.9, 0], [20, 20, 40, 40, 0.5, 1], [0, 0, 1, 1, 0.001, 1]]], np.float32)
    assert q.output_divergence(rows, rows[:, [1, 0, 2]], END2END)[0] == 0
    other = rows.copy()
    other[0, 0, 5] = 2  # another class: the prediction is lost
    assert q.output_divergence(rows, other, END2END)[0] == pytest.approx(0.9 * 2)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_non_finite_outputs_count_as_lost(fp32, broken):
    (picture,) = pictures(1)
    expected = q.reference_session(fp32).run(None, {"images": picture})[0]
    actual = np.full_like(expected, broken)
    differs, total = q.output_divergence(expected, actual, RAW)
    assert np.isfinite(differs) and differs >= total
