"""What an output means is stated, and a network is measured as it is exported: at its own size, by its own head."""

import numpy as np
import onnx
import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.output import END2END, RAW
from edgeprune_device.vision import accuracy, preprocess
from edgeprune_device.vision.postprocess import detections
from onnx import TensorProto, helper

import edgeprune as ep
from edgeprune.data import dataset, samples
from edgeprune.exporting import nms
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.measuring.accuracy import evaluate, true_boxes
from edgeprune.measuring.sessions import OnnxSession, ReferenceSession, TorchSession
from edgeprune.model import checkpoint, head

from ..small import dataset as drawn
from ..small import label_by, save
from ..two_heads import CLASSES, noise, two_heads

STATED = {"end2end": "True", "args": "{'nms': False}"}
OWN = {"end2end": "False", "args": "{'nms': False}"}
NMS = {"end2end": "False", "args": "{'nms': True}"}
OLD = {"args": "{'dynamic': False}"}  # Ultralytics before it knew of two heads


@pytest.fixture(scope="module")
def two():
    return two_heads()


def test_eighty_four_rows_of_eighty_classes_are_rows(two):
    """The shape alone says the opposite: (1, 84, 6) has 4 + 80 of something."""
    session = TorchSession(two, 64)
    (rows,) = session.infer(noise(64))
    found = detections([rows], session.kind, classes=CLASSES, conf=0.001)
    assert np.array_equal(found, rows[0][rows[0, :, 4] > 0.001]) and len(found) > 20
    assert not np.array_equal(found, detections([rows], RAW, classes=CLASSES, conf=0.001))


def test_of_one_head_nothing_is_said_and_it_is_raw(small):
    assert TorchSession(small, 64).kind == RAW
    assert head.of_network(small) is None and head.of_file(to_onnx(small, (64, 64))) is None


# --- the file ---------------------------------------------------------------------------------------------------------
def test_a_file_says_what_its_output_means_in_every_form(two, small):
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
        (file([1, "rows", 6], **STATED), END2END),  # a dimension left open
        (file([1, 84, 8400]), RAW),  # nothing said, and one way to read it
        (file([1, 84, 8400], **OLD), RAW),
        (file([1, 300, 6], **OLD), END2END),
        (file([1, 300, 6], end2end="nonsense"), END2END),
        (file([1, 9, 2100], classes=None), RAW),
    ],
)
def test_the_metadata_decides_and_without_it_a_shape_that_has_one_reading(model, kind):
    assert head.output_of_file(model) == kind


@pytest.mark.parametrize(
    "model, says",
    [
        (file([1, 84, 6]), r"m\.onnx: its output \[1, 84, 6\] for 80 classes can be read as raw and as end2end"),
        (file([1, "n", "m"]), "can be read as raw and as end2end"),
        (file([1, 84, 8400], **STATED), r"stated to be end2end, which \[1, 84, 8400\] is not for 80 classes"),
        (file([1, 300, 6], **OWN), "stated to be raw"),
        (file([1, 25200, 85]), r"\[1, 25200, 85\] is no detector's"),  # YOLOv5's own head
        (file([1, 1000]), "no detector's"),
    ],
)
def test_what_cannot_be_known_is_refused_in_one_line(model, says):
    with pytest.raises(InputError, match=says) as caught:
        head.output_of_file(model, what="m.onnx")
    assert "\n" not in str(caught.value)


def test_what_a_manifest_states_is_taken_where_the_file_says_nothing():
    assert head.output_of_file(file([1, 84, 6]), END2END) == END2END
    assert head.output_of_file(file([1, 84, 6]), RAW) == RAW
    with pytest.raises(InputError, match="stated to be end2end"):
        head.output_of_file(file([1, 84, 8400], **OWN), END2END)


# --- figures ----------------------------------------------------------------------------------------------------------
def test_checkpoint_file_and_pruned_network_have_one_figure_and_name_their_head(two, tmp_path, capsys):
    weights = save(two, tmp_path / "best.pt", imgsz=64)
    data = drawn(tmp_path / "data", train=8, val=4, size=64)
    names = "".join(f"  {i}: thing{i}\n" for i in range(CLASSES))
    data.write_text(f"train: images/train\nval: images/val\nnames:\n{names}")
    model = checkpoint.load(weights).model
    label_by(TorchSession(model, 64), tmp_path / "data", 64, CLASSES)
    onnx.save(to_onnx(model, (64, 64)), tmp_path / "best.onnx")
    found = ep.compare(weights, tmp_path / "best.onnx", data=data, rounds=1, pictures=1, quiet=True)
    a, b = found.items
    assert a.map50_95 == pytest.approx(b.map50_95, abs=1e-3) and a.map50_95 > 0.5
    assert a.head == b.head == "one-to-one" and a.stages_ms and b.stages_ms
    assert a.objects_found == b.objects_found > 0
    assert "mAP of best.pt, best.onnx: that of the one-to-one head, without NMS" in str(found)
    pruned = ep.prune(weights, macs=0.9, data=data, criterion="bn_scale", quiet=True)
    assert pruned.accuracy[0] > 0.5 and "unless nms=False" in str(pruned)


def test_yolo26_has_one_figure_by_pt_by_onnx_and_by_ultralytics(shared):
    """Sixteen COCO pictures; without its NMS Ultralytics takes the head that is exported."""
    from ultralytics import YOLO

    weights, size = shared / "weights" / "yolo26n-coco-rebuilt.pt", 640
    model = checkpoint.load(weights).model
    data = dataset.load(shared / "coco128" / "data.yaml")
    pictures = samples.pick(data.val, 16)
    by_pt, _ = evaluate(TorchSession(model, size), data, pictures, size)
    by_onnx, _ = evaluate(OnnxSession(to_onnx(model, (size, size))), data, pictures, size)
    stock, found = YOLO(weights), []
    for picture in pictures:
        bgr = np.ascontiguousarray(preprocess.decode(picture)[..., ::-1])
        result = stock.predict(bgr, imgsz=size, rect=False, conf=0.001, nms=False, verbose=False, device="cpu")[0]
        found.append(result.boxes.data.numpy())
    theirs = accuracy.match(found, [true_boxes(data, p) for p in pictures], list(data.names)).accuracy()
    assert theirs.map50_95 > 0.4
    assert by_pt.map50_95 == pytest.approx(theirs.map50_95, abs=0.005)
    assert by_onnx.map50_95 == pytest.approx(theirs.map50_95, abs=0.005)
