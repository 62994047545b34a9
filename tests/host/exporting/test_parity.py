"""parity: an export that differs from its network is detected."""

import numpy as np
import onnx
import pytest
from edgeprune_device.errors import GateError
from edgeprune_device.output import END2END, RAW

from edgeprune.exporting import parity
from edgeprune.exporting.parity import Parity, compare_outputs, measure_parity
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.model.head import ONE_TO_ONE, select

from ..detectors import detector, pictures


def test_correct_export_is_far_within_the_limits(v8, v8_onnx, tmp_path):
    measured = measure_parity(v8, v8_onnx, pictures(3, 96, 160))
    measured.check()
    assert measured.max_box_px < parity.MAX_BOX_PX / 10 and measured.max_score < parity.MAX_SCORE / 10
    assert measured.compared > 100 and measured.pictures == 3
    path = tmp_path / "m.onnx"
    onnx.save(v8_onnx, path)
    assert measure_parity(v8, path, pictures(3, 96, 160)) == measured
    assert measured.to_json()["max_score"] == measured.max_score


@pytest.mark.parametrize("weight", ["model.0.conv.weight", "model.22.cv2.1.2.weight", "model.22.cv3.0.1.conv.weight"])
def test_parity_detects_one_wrong_weight_tensor(v8, v8_onnx, weight):
    broken = onnx.ModelProto()
    broken.CopyFrom(v8_onnx)
    tensor = next(t for t in broken.graph.initializer if t.name == weight)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0] *= 1.1
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, weight))
    with pytest.raises(GateError, match=r"differ from PyTorch's on .* of 2 images \(boxes by up to .* px"):
        measure_parity(v8, broken, pictures(2, 96, 160)).check()


def test_parity_without_images_fails(v8, v8_onnx):
    with pytest.raises(GateError, match="0 images"):
        measure_parity(v8, v8_onnx, []).check()


def test_nan_fails_parity():
    good = np.random.default_rng(0).random((1, 8, 50))
    bad = good.copy()
    bad[0, 4, 7] = np.nan
    box, score, compared, unmatched = compare_outputs(good, bad, RAW)
    with pytest.raises(GateError):
        Parity(box, score, 1, compared, unmatched).check()
    with pytest.raises(GateError):
        Parity(float("nan"), 0.0, 1, 10).check()
    assert Parity(float("nan"), 0.0, 1, 10).to_json()["max_box_px"] is None


def test_raw_outputs_are_compared_only_where_a_side_has_a_score():
    expected = np.zeros((1, 6, 3))
    expected[0, 4] = [0.9, 0.0005, 0.5]
    actual = expected.copy()
    actual[0, 0] = [0.25, 50.0, 0.0]  # the second anchor has no score, so its box is ignored
    actual[0, 4, 2] = 0.4
    assert compare_outputs(expected, actual, RAW) == pytest.approx((0.25, 0.1, 2, 0))
    actual[0, 5, 1] = 0.3  # unless the other side has a score there
    assert compare_outputs(expected, actual, RAW)[:3] == pytest.approx((50.0, 0.3, 3))


def test_rows_are_compared_by_box_and_class_not_by_rank():
    row = lambda x, score, label: [x, 0, x + 10, 10, score, label]  # noqa: E731
    expected = np.array([[row(0, 0.9, 1), row(100, 0.8999, 1), row(200, 0.5, 2), row(9, 0.001, 0)]])
    actual = expected[:, [1, 0, 2, 3]].copy()
    assert compare_outputs(expected, actual, END2END) == (0.0, 0.0, 3, 0)
    actual[0, 2, 5] = 3
    assert compare_outputs(expected, actual, END2END)[2:] == (3, 1)
    with pytest.raises(GateError, match="1 unmatched detections"):
        Parity(*compare_outputs(expected, actual, END2END)[:2], 1, 3, 1).check()


def without_boxes(config, which=None):
    """A detector whose scores are all below one in a million, as an untrained one may have."""
    model = detector(config)
    head = model.model[-1]
    for tower in (*(head.cv3 or ()), *(getattr(head, "one2one_cv3", None) or ())):
        tower[-1].bias.data.fill_(-18.0)
    select(model, which)
    return model


@pytest.mark.parametrize(
    "config, which",
    [("yolo26n.yaml", ONE_TO_ONE), ("yolov10n.yaml", ONE_TO_ONE), ("yolo26n.yaml", None), ("yolov8n.yaml", None)],
)
def test_raw_outputs_are_compared_if_neither_side_finds_a_box(config, which):
    model = without_boxes(config, which)
    file = to_onnx(model, (160, 160))
    measured = measure_parity(model, file, pictures(2, 160, 160))
    measured.check()
    assert measured.boxless == measured.pictures == 2 and measured.compared == 2 * (20**2 + 10**2 + 5**2)
    assert 0 < measured.max_box_px < parity.MAX_BOX_PX / 10 and 0 < measured.max_score < parity.MAX_SCORE / 10
    assert measured.over == "2 images, 2 without a box" and measured.to_json()["boxless"] == 2

    # The raw outputs reveal a wrong bias of the scores, whose absolute differences are tiny, and of the boxes.
    head = f"model.{len(model.model) - 1}."
    branch = "one2one_" if which == ONE_TO_ONE else ""
    for tower, change in (("cv3", 0.1), ("cv2", 0.5)):
        name = f"{head}{branch}{tower}.0.2.bias"
        broken = onnx.ModelProto()
        broken.CopyFrom(file)
        tensor = next(t for t in broken.graph.initializer if t.name == name)
        values = onnx.numpy_helper.to_array(tensor) + np.linspace(0, change, tensor.dims[0], dtype=np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
        with pytest.raises(GateError, match=r"1050 boxes of 2 images .*; 2 images without a box"):
            measure_parity(model, broken, pictures(2, 160, 160)).check()


def test_box_on_one_side_only_is_unmatched():
    nothing = np.zeros((1, 4, 6))
    seen = nothing.copy()
    seen[0, 0] = [10, 10, 20, 20, 0.9, 1]
    for pair in ((nothing, seen), (seen, nothing)):
        box, score, compared, unmatched = compare_outputs(*pair, END2END)
        assert (compared, unmatched) == (1, 1)
        with pytest.raises(GateError, match="1 unmatched detections"):
            Parity(box, score, 1, compared, unmatched).check()
