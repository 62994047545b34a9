"""to_onnx: one static, simplified, named graph that equals the model."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from edgeprune_device.errors import InputError
from ultralytics import YOLO

from edgeprune.exporting.parity import measure_parity
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.model import head

from ..detectors import detector, pictures


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


def test_export_does_not_change_the_model_and_prints_nothing(v8, capfd, recwarn):
    before = copy.deepcopy(v8.state_dict())
    to_onnx(v8, (64, 64))
    after = v8.state_dict()
    assert before.keys() == after.keys()  # not fused
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not v8.model[-1].export
    assert next(v8.parameters()).requires_grad
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)


def test_fused_and_unfused_models_give_the_same_outputs(v8, v8_onnx):
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


@pytest.mark.parametrize("which", head.HEADS)
@pytest.mark.parametrize("config, anchors", [("yolo11n.yaml", 84), ("yolov10n.yaml", 84), ("yolo26n.yaml", 525)])
def test_exports_of_other_families_equal_pytorch(config, anchors, which):
    model = detector(config)
    one_to_one = which == head.ONE_TO_ONE
    if one_to_one and not head.two_heads(model):
        with pytest.raises(InputError, match="has only the one-to-many head; leave the option out"):
            head.select(model, which)
        return
    head.select(model, which)
    side = 64 if anchors == 84 else 160
    graph = to_onnx(model, (side, side))
    shape = [d.dim_value for d in graph.graph.output[0].type.tensor_type.shape.dim]
    assert shape == ([1, min(anchors, 300), 6] if one_to_one else [1, 8, anchors])
    # The file has the weights of one head only.
    names = {t.name for t in graph.graph.initializer}
    assert any("one2one" in name for name in names) == one_to_one
    assert any(f".{len(model.model) - 1}.cv3." in name for name in names) != one_to_one
    measured = measure_parity(model, graph, pictures(2, side, side))
    measured.check()
    assert measured.pictures == 2 and measured.compared > 20


@pytest.mark.parametrize("end2end, shape", [(None, [1, 8, 84]), (False, [1, 8, 84]), (True, [1, 84, 6])])
def test_the_caller_may_choose_the_head_of_a_file(end2end, shape):
    model = detector("yolo26n.yaml")
    file = to_onnx(model, (64, 64), end2end=end2end)
    assert [d.dim_value for d in file.graph.output[0].type.tensor_type.shape.dim] == shape
    measure_parity(model, file, pictures(1, 64, 64)).check()
    assert not head.is_end2end(model)
