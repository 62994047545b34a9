"""head: the stated meaning of an output, and figures from the exported head at the trained size."""

import numpy as np
import onnx
import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.output import END2END, RAW
from edgeprune_device.vision import accuracy, preprocess
from edgeprune_device.vision.detect import detections
from onnx import TensorProto, helper

import edgeprune as ep
from edgeprune.data import dataset, samples
from edgeprune.exporting import nms
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.measuring.accuracy import evaluate, true_boxes
from edgeprune.measuring.sessions import OnnxSession, ReferenceSession, TorchSession
from edgeprune.model import checkpoint, head

from ..small import dataset as drawn
from ..small import label_by, network, save
from ..two_heads import CLASSES, noise, two_heads

STATED = {"end2end": "True", "args": "{'nms': False}"}
OWN = {"end2end": "False", "args": "{'nms': False}"}
NMS = {"end2end": "False", "args": "{'nms': True}"}
OLD = {"args": "{'dynamic': False}"}  # Ultralytics before it supported two heads


@pytest.fixture(scope="module")
def two():
    return two_heads()


def test_eighty_four_rows_are_not_read_as_eighty_classes(two):
    """The shape (1, 84, 6) alone suggests 4 + 80 classes."""
    session = TorchSession(two, 64)
    (rows,) = session.infer(noise(64))
    detected = detections([rows], session.kind, classes=CLASSES, conf=0.001)
    assert np.array_equal(detected, rows[0][rows[0, :, 4] > 0.001]) and len(detected) > 20
    assert not np.array_equal(detected, detections([rows], RAW, classes=CLASSES, conf=0.001))


def test_a_single_head_is_raw_and_has_no_note(small):
    assert TorchSession(small, 64).kind == RAW
    assert head.of_network(small) is None and head.of_file(to_onnx(small, (64, 64))) is None


# --- the file ---------------------------------------------------------------------------------------------------------
def test_every_exported_file_states_the_meaning_of_its_output(two, small):
    rows, raw = to_onnx(two, (64, 64)), to_onnx(two, (64, 64), end2end=False)
    assert (head.output_of_file(rows), head.of_file(rows)) == (END2END, head.ONE_TO_ONE)
    assert (head.output_of_file(raw), head.of_file(raw)) == (RAW, None)
    inside = nms.add(to_onnx(small, (64, 64)))
    assert (head.output_of_file(inside), head.of_file(inside)) == (END2END, None)
    assert head.output_of_file(nms.without(inside)) == RAW
    for session in (OnnxSession(rows), ReferenceSession(rows)):
        assert session.kind == END2END


def file(shape, classes=CLASSES, **meta):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("images", "output0")]
    model = helper.make_model(helper.make_graph([helper.make_node("Identity", ["images"], ["output0"])], "g", *[
        [value] for value in values]))  # fmt: skip
    names = {} if classes is None else {"names": str({i: f"c{i}" for i in range(classes)})}
    helper.set_model_props(model, {**names, **meta})
    return model


@pytest.mark.parametrize(
    "model, kind",
    [
        (file([1, 84, 6], **STATED), END2END),
        (file([1, 84, 6], **OWN), RAW),
        (file([1, 84, 6], **NMS), END2END),
        (file([1, 84, 8400], **OWN), RAW),
        (file([1, "rows", 6], **STATED), END2END),  # a dynamic dimension
        (file([1, 84, 8400]), RAW),  # no stated meaning, and one possible meaning
        (file([1, 84, 8400], **OLD), RAW),
        (file([1, 300, 6], **OLD), END2END),
        (file([1, 300, 6], end2end="nonsense"), END2END),
        (file([1, 9, 2100], classes=None), RAW),
    ],
)
def test_the_metadata_decides_or_else_an_unambiguous_shape(model, kind):
    assert head.output_of_file(model) == kind


@pytest.mark.parametrize(
    "model, says",
    [
        (file([1, 84, 6]), r"m\.onnx: ambiguous output \(shape \[1, 84, 6\] for 80 classes can be raw or end2end"),
        (file([1, "n", "m"]), "can be raw or end2end"),
        (file([1, 84, 8400], **STATED), r"for its stated format, end2end, and 80 classes \(found \[1, 84, 8400\]\)"),
        (file([1, 300, 6], **OWN), "for its stated format, raw"),
        (file([1, 25200, 85]), r"not a detector \(found output shape \[1, 25200, 85\]"),  # YOLOv5's own head
        (file([1, 1000]), "not a detector"),
    ],
)
def test_unknown_outputs_are_refused_in_one_line(model, says):
    with pytest.raises(InputError, match=says) as caught:
        head.output_of_file(model, what="m.onnx")
    assert "\n" not in str(caught.value)


def test_the_manifest_decides_for_a_file_without_metadata():
    assert head.output_of_file(file([1, 84, 6]), END2END) == END2END
    assert head.output_of_file(file([1, 84, 6]), RAW) == RAW
    with pytest.raises(InputError, match="for its stated format, end2end"):
        head.output_of_file(file([1, 84, 8400], **OWN), END2END)


# --- figures ----------------------------------------------------------------------------------------------------------
def test_checkpoint_and_file_have_equal_figures_and_name_their_head(two, tmp_path, capsys):
    weights = save(two, tmp_path / "best.pt", imgsz=64)
    data = drawn(tmp_path / "data", train=8, val=4, size=64)
    names = "".join(f"  {i}: thing{i}\n" for i in range(CLASSES))
    data.write_text(f"train: images/train\nval: images/val\nnames:\n{names}")
    model = checkpoint.load(weights).model
    label_by(TorchSession(model, 64), tmp_path / "data", 64, CLASSES)
    onnx.save(to_onnx(model, (64, 64)), tmp_path / "best.onnx")
    comparison = ep.compare(weights, tmp_path / "best.onnx", data=data, rounds=1, pictures=1, quiet=True)
    a, b = comparison.items
    assert a.map50_95 == pytest.approx(b.map50_95, abs=1e-3) and a.map50_95 > 0.5
    assert a.head == b.head == "one-to-one" and a.stages_ms and b.stages_ms
    assert a.objects_found == b.objects_found > 0
    assert "mAP of best.pt, best.onnx: measured with the one-to-one head without NMS" in str(comparison)
    pruned = ep.prune(weights, macs=0.9, data=data, criterion="bn_scale", quiet=True)
    assert pruned.accuracy[0] > 0.5 and "unless nms=False" in str(pruned)


def test_yolo26_has_equal_figures_as_pt_as_onnx_and_in_ultralytics(shared):
    """Sixteen COCO images; without NMS, Ultralytics uses the exported head."""
    from ultralytics import YOLO

    weights, size = shared / "weights" / "yolo26n-coco-rebuilt.pt", 640
    model = checkpoint.load(weights).model
    head.select(model, head.ONE_TO_ONE)
    data = dataset.load(shared / "coco128" / "data.yaml")
    pictures = samples.pick(data.val, 16)
    by_pt, _ = evaluate(TorchSession(model, size), data, pictures, size)
    by_onnx, _ = evaluate(OnnxSession(to_onnx(model, (size, size))), data, pictures, size)
    stock, detected = YOLO(weights), []
    for picture in pictures:
        bgr = np.ascontiguousarray(preprocess.decode(picture)[..., ::-1])
        result = stock.predict(bgr, imgsz=size, rect=False, conf=0.001, nms=False, verbose=False, device="cpu")[0]
        detected.append(result.boxes.data.numpy())
    theirs = accuracy.match(detected, [true_boxes(data, p) for p in pictures], list(data.names)).accuracy()
    assert theirs.map50_95 > 0.4
    assert by_pt.map50_95 == pytest.approx(theirs.map50_95, abs=0.005)
    assert by_onnx.map50_95 == pytest.approx(theirs.map50_95, abs=0.005)


# --- the choice -------------------------------------------------------------------------------------------------------
def test_the_choice_of_the_head_stays_in_the_checkpoint(tmp_path):
    model = network("yolo26n.yaml", width=0.125)
    assert head.two_heads(model) and head.of_network(model) == head.ONE_TO_MANY  # as Ultralytics
    for which in (head.ONE_TO_ONE, head.ONE_TO_MANY):
        head.select(model, which)
        again = checkpoint.load(save(model, tmp_path / "best.pt")).model
        head.select(again, None)
        assert head.of_network(again) == which
        unused = "one2one_" if which == head.ONE_TO_MANY else ""
        assert head.idle(again) == (f"model.23.{unused}cv2", f"model.23.{unused}cv3")


def test_a_head_that_does_not_exist_is_refused(small, tmp_path):
    assert not head.two_heads(small) and head.idle(small) == ()
    head.select(small, head.ONE_TO_MANY)
    with pytest.raises(
        InputError, match=r"^head=one-to-one: this model has only the one-to-many head; leave the option out$"
    ):
        head.select(small, head.ONE_TO_ONE)
    with pytest.raises(InputError, match="has only the one-to-many head"):
        ep.prune(small, macs=0.9, head="one-to-one", quiet=True)
    fused = network("yolo26n.yaml", width=0.125)
    head.select(fused, head.ONE_TO_ONE)
    fused = fused.fuse(verbose=False)
    assert not head.two_heads(fused) and head.of_network(fused) == head.ONE_TO_ONE
    with pytest.raises(InputError, match="has only the one-to-one head"):
        head.select(fused, head.ONE_TO_MANY)


def test_a_network_in_memory_keeps_its_own_choice(two):
    result = ep.prune(two, macs=0.9, head="one-to-many", quiet=True)
    assert head.is_end2end(two) and not head.is_end2end(result.checkpoint.model)
