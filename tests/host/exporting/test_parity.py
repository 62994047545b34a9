"""parity: an export that differs from its network is noticed."""


import numpy as np
import onnx
import pytest
from edgeprune_device.errors import GateError
from edgeprune_device.output import END2END, RAW

from edgeprune.exporting import parity
from edgeprune.exporting.parity import Parity, compare_outputs, measure_parity

from ..detectors import pictures


def test_parity_of_an_honest_export_has_margin(v8, v8_onnx, tmp_path):
    found = measure_parity(v8, v8_onnx, pictures(3, 96, 160))
    found.check()
    assert found.max_box_px < parity.MAX_BOX_PX / 10 and found.max_score < parity.MAX_SCORE / 10
    assert found.compared > 100 and found.pictures == 3
    path = tmp_path / "m.onnx"
    onnx.save(v8_onnx, path)
    assert measure_parity(v8, path, pictures(3, 96, 160)) == found
    assert found.to_json()["max_score"] == found.max_score


@pytest.mark.parametrize("weight", ["model.0.conv.weight", "model.22.cv2.1.2.weight", "model.22.cv3.0.1.conv.weight"])
def test_parity_notices_one_wrong_weight_tensor(v8, v8_onnx, weight):
    broken = onnx.ModelProto()
    broken.CopyFrom(v8_onnx)
    tensor = next(t for t in broken.graph.initializer if t.name == weight)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0] *= 1.1
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, weight))
    with pytest.raises(GateError, match=r"boxes differ by up to .* px .* 2 pictures"):
        measure_parity(v8, broken, pictures(2, 96, 160)).check()


def test_parity_of_nothing_does_not_pass(v8, v8_onnx):
    with pytest.raises(GateError, match="0 pictures"):
        measure_parity(v8, v8_onnx, []).check()


def test_values_that_are_not_numbers_fail():
    good = np.random.default_rng(0).random((1, 8, 50))
    bad = good.copy()
    bad[0, 4, 7] = np.nan
    box, score, compared, unmatched = compare_outputs(good, bad, RAW)
    with pytest.raises(GateError):
        Parity(box, score, 1, compared, unmatched).check()
    with pytest.raises(GateError):
        Parity(float("nan"), 0.0, 1, 10).check()
    assert Parity(float("nan"), 0.0, 1, 10).to_json()["max_box_px"] is None


def test_raw_outputs_are_compared_where_a_score_matters():
    expected = np.zeros((1, 6, 3))
    expected[0, 4] = [0.9, 0.0005, 0.5]
    actual = expected.copy()
    actual[0, 0] = [0.25, 50.0, 0.0]  # the second anchor has no score: its box does not matter
    actual[0, 4, 2] = 0.4
    assert compare_outputs(expected, actual, RAW) == pytest.approx((0.25, 0.1, 2, 0))
    actual[0, 5, 1] = 0.3  # unless the other side sees something there
    assert compare_outputs(expected, actual, RAW)[:3] == pytest.approx((50.0, 0.3, 3))


def test_rows_are_compared_by_place_and_class_not_by_rank():
    row = lambda x, score, label: [x, 0, x + 10, 10, score, label]  # noqa: E731
    expected = np.array([[row(0, 0.9, 1), row(100, 0.8999, 1), row(200, 0.5, 2), row(9, 0.001, 0)]])
    actual = expected[:, [1, 0, 2, 3]].copy()
    assert compare_outputs(expected, actual, END2END) == (0.0, 0.0, 3, 0)
    actual[0, 2, 5] = 3
    assert compare_outputs(expected, actual, END2END)[2:] == (3, 1)
    with pytest.raises(GateError, match="1 detections without a partner"):
        Parity(*compare_outputs(expected, actual, END2END)[:2], 1, 3, 1).check()
