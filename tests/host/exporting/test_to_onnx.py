"""export: one static, simplified, named graph that equals the model; a parity check that notices when it does not."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from edgeprune_device.errors import GateError, InputError
from edgeprune_device.output import END2END, RAW
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

from edgeprune.exporting import parity
from edgeprune.exporting.parity import Parity, compare_outputs, measure_parity
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.model.prepare import prepare

from ..small import settle


def detector(config="yolov8n.yaml", seed=0):
    """A random detector whose BN statistics are those of its own features, so that, as in a trained one, the picture
    reaches the outputs; its scores differ from place to place."""
    torch.manual_seed(seed)
    model = DetectionModel(config, nc=4, verbose=False)
    settle(model, 4, 96, least=1.0)
    head = model.model[-1]
    for tower in (*(head.cv3 or ()), *(getattr(head, "one2one_cv3", None) or ())):
        tower[-1].weight.data.normal_(0, 0.5)
        tower[-1].bias.data.fill_(-3.0)
    return model.eval()


def pictures(count, height, width):
    rng = np.random.default_rng(0)
    return [rng.random((1, 3, height, width), dtype=np.float32) for _ in range(count)]


@pytest.fixture(scope="module")
def v8():
    return detector()


@pytest.fixture(scope="module")
def v8_onnx(v8):
    return to_onnx(v8, (96, 160))


def test_the_graph_is_static_named_and_simplified(v8_onnx):
    session = onnxruntime.InferenceSession(v8_onnx.SerializeToString())
    (entry,), (result,) = session.get_inputs(), session.get_outputs()
    assert (entry.name, entry.shape, entry.type) == ("images", [1, 3, 96, 160], "tensor(float)")
    assert (result.name, result.shape, result.type) == ("output0", [1, 8, 12 * 20 + 6 * 10 + 3 * 5], "tensor(float)")
    ops = [node.op_type for node in v8_onnx.graph.node]
    assert ops.count("Conv") == 64
    assert not {"BatchNormalization", "Shape", "Gather", "Identity", "Constant"} & set(ops)
    assert v8_onnx.opset_import[0].version == 17
    assert "/model.2/m.0/cv1/conv/Conv" in {node.name for node in v8_onnx.graph.node}


def test_export_leaves_the_model_as_it_was_and_says_nothing(v8, capfd, recwarn):
    before = copy.deepcopy(v8.state_dict())
    to_onnx(v8, (64, 64))
    after = v8.state_dict()
    assert before.keys() == after.keys()  # not fused
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not v8.model[-1].export
    assert next(v8.parameters()).requires_grad
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)


def test_a_fused_and_an_unfused_model_give_the_same_outputs(v8, v8_onnx):
    fused = to_onnx(copy.deepcopy(v8).fuse(verbose=False), (96, 160))
    (picture,) = pictures(1, 96, 160)
    sessions = [onnxruntime.InferenceSession(m.SerializeToString()) for m in (v8_onnx, fused)]
    a, b = (session.run(None, {"images": picture})[0] for session in sessions)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_stock_ultralytics_opens_the_file_and_reads_its_metadata(v8, tmp_path):
    v8 = copy.deepcopy(v8)
    v8.names = {0: "person", 1: "car", 2: "bike", 3: "van"}
    path = tmp_path / "model.onnx"
    onnx.save(to_onnx(v8, (96, 160), metadata={"lineage": "abc"}), path)
    result = YOLO(path, task="detect").predict(np.zeros((96, 160, 3), np.uint8), imgsz=(96, 160), verbose=False)[0]
    assert result.names == v8.names
    written = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert written["stride"] == "32" and written["imgsz"] == "[96, 160]" and written["task"] == "detect"
    assert written["end2end"] == "False" and written["lineage"] == "abc"


@pytest.mark.parametrize("config, anchors", [("yolo11n.yaml", 84), ("yolov10n.yaml", 84), ("yolo26n.yaml", 525)])
def test_other_families_equal_pytorch(config, anchors):
    model = detector(config)
    side = 64 if anchors == 84 else 160
    graph = to_onnx(model, (side, side))
    one_to_one = config != "yolo11n.yaml"
    shape = [d.dim_value for d in graph.graph.output[0].type.tensor_type.shape.dim]
    assert shape == ([1, min(anchors, 300), 6] if one_to_one else [1, 8, anchors])
    found = measure_parity(model, graph, pictures(2, side, side))
    found.check()
    assert found.pictures == 2 and found.compared > 20


def test_a_one_to_one_head_can_be_left_out():
    model = detector("yolo26n.yaml")
    raw = to_onnx(model, (64, 64), end2end=False)
    assert [d.dim_value for d in raw.graph.output[0].type.tensor_type.shape.dim] == [1, 8, 84]
    measure_parity(model, raw, pictures(1, 64, 64)).check()


def test_sizes_and_heads_that_do_not_exist_are_refused(v8):
    with pytest.raises(InputError, match="stride 32"):
        to_onnx(v8, (96, 100))
    with pytest.raises(InputError, match="one-to-one"):
        prepare(v8, (96, 96), end2end=True)


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
