"""nms: greedy NMS with fixed shapes inside the file, equal to NMS outside it."""

import ast

import numpy as np
import onnx
import onnxruntime
import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.output import END2END, RAW
from edgeprune_device.vision.detect import detections
from edgeprune_device.vision.postprocess import IOU
from onnx import TensorProto, helper, numpy_helper

import edgeprune as ep
from edgeprune import quantize as q
from edgeprune.exporting import nms, tensorrt
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.model import checkpoint

from ..small import dataset as pictures_of
from ..small import network

SIZE = 96


@pytest.fixture(scope="module")
def raw():
    return to_onnx(network(), (SIZE, SIZE))


def answering(output: np.ndarray) -> onnx.ModelProto:
    """A model that returns `output`, (1, 4 + classes, anchors), for every image."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
            helper.make_node("Add", ["answer", "nothing"], ["output0"]),
        ],
        "fixed",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, list(output.shape))],
        [
            numpy_helper.from_array(output.astype(np.float32), "answer"),
            numpy_helper.from_array(np.float32(0), "zero"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def rows_of(model, picture=None):
    picture = np.zeros((1, 3, SIZE, SIZE), np.float32) if picture is None else picture
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (rows,) = session.run(None, {"images": picture})
    anchors = nms.without(model).graph.output[0].type.tensor_type.shape.dim[2].dim_value
    assert rows.shape == (1, min(300, anchors), 6) and rows.dtype == np.float32
    return rows


@pytest.mark.parametrize(("count", "classes", "spread"), [(400, 3, 90), (2000, 2, 90), (1000, 80, 30), (50, 1, 5)])
def test_nms_in_the_file_equals_nms_outside_on_random_boxes(count, classes, spread):
    rng = np.random.default_rng(count)
    output = np.empty((1, 4 + classes, count))
    output[0, :2] = rng.uniform(0, spread, (2, count))
    output[0, 2:4] = rng.uniform(5, 30, (2, count))
    output[0, 4:] = rng.uniform(0, 1, (classes, count)) ** 8
    output = output.astype(np.float32)
    expected = detections([output], RAW, classes=classes, conf=nms.CONF, iou=IOU)
    detected = detections([rows_of(nms.add(answering(output)))], END2END, classes=classes, conf=nms.CONF)
    # Only the best 1,024 boxes are candidates, so the list may end earlier.
    assert len(detected) == len(expected) or count > nms.CANDIDATES
    assert len(detected) > 0 and np.allclose(detected, expected[: len(detected)], atol=1e-4)


def test_chain_of_overlapping_boxes_keeps_every_second_one():
    """Each box covers the next, so every second one is kept; one pass over the overlaps would not find this."""
    count = nms.ITERATIONS
    output = np.zeros((1, 5, 20), np.float32)
    output[0, :4] = np.array([48, 48, 20, 20])[:, None]
    output[0, 0, :count] = 10 + 3 * np.arange(count)  # 3 px of 20: IoU 0.74; 6 px: 0.54
    output[0, 4, :count] = np.linspace(0.9, 0.5, count)
    rows = rows_of(nms.add(answering(output)))
    detected = detections([rows], END2END, classes=1, conf=nms.CONF)
    expected = detections([output], RAW, classes=1, conf=nms.CONF, iou=IOU)
    assert len(detected) == len(expected) == count // 2 and np.allclose(detected, expected, atol=1e-4)
    assert not rows[0, len(detected) :].any()  # zeros after the last detection


def test_boxes_of_other_classes_do_not_suppress_and_no_boxes_give_zeros():
    output = np.zeros((1, 6, 20), np.float32)
    output[0, :4, :2] = np.array([48, 48, 20, 20])[:, None]
    output[0, 4, 0], output[0, 5, 1] = 0.9, 0.8
    detected = detections([rows_of(nms.add(answering(output)))], END2END, classes=2, conf=nms.CONF)
    assert detected[:, 5].tolist() == [0, 1]
    assert not rows_of(nms.add(answering(np.zeros((1, 6, 20))))).any()


def test_nms_in_the_file_equals_nms_outside_in_every_precision(raw):
    rng = np.random.default_rng(0)
    picture = rng.random((1, 3, SIZE, SIZE), dtype=np.float32)
    ranges = q.calibrate(raw, [picture])
    files = {"fp32": raw, "fp16": q.to_fp16(raw, ranges).model, "int8": q.to_int8(raw, ranges),
             "int8-fp16": q.to_int8(raw, ranges, rest="fp16")}  # fmt: skip
    for model in files.values():
        onnx.checker.check_model(nms.add(model), full_check=True)
        outside = q.reference_session(q.rounded(model)).run(None, {"images": picture})
        inside = q.reference_session(q.rounded(nms.add(model))).run(None, {"images": picture})
        expected = detections(outside, RAW, classes=3, conf=0.01)
        detected = detections(inside, END2END, classes=3, conf=0.01)
        assert len(expected) > 3 and np.allclose(expected, detected, atol=1e-3)


def test_without_restores_the_file_before_add(raw):
    added = nms.add(raw)
    assert nms.without(added).SerializeToString() == raw.SerializeToString()
    assert nms.without(raw) is raw
    args = next(e.value for e in added.metadata_props if e.key == "args")
    assert ast.literal_eval(args)["nms"] is True


def test_one_to_one_head_is_refused_before_any_image_is_read(tmp_path, monkeypatch):
    model = network("yolo26n.yaml")
    with pytest.raises(InputError, match=r"^nms: .*; leave the option out$"):
        nms.add(to_onnx(model, (SIZE, SIZE), end2end=True))
    given = checkpoint.Checkpoint(tmp_path / "best.pt", model, {})
    data = pictures_of(tmp_path / "data")
    monkeypatch.setattr("edgeprune.data.samples.read", None)
    with pytest.raises(InputError, match=r"^nms: .*; leave the option out$"):
        ep.export(given, data, imgsz=SIZE, nms=True, head="one-to-one", quiet=True)


@pytest.mark.skipif(tensorrt.available() is not None, reason=str(tensorrt.available()))
@pytest.mark.parametrize("compute", ["SM86", "SM120"])
def test_nvidias_builder_accepts_nms(raw, tmp_path, compute):
    onnx.save(nms.add(raw), tmp_path / "a.onnx")
    built = tensorrt.build(tmp_path / "a.onnx", compute)
    assert built.reason is None and built.size_bytes > 0
