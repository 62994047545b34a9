import io
import json
import zipfile

import numpy as np
import pytest
from edgeprune_device import runtimes
from edgeprune_device.errors import InputError
from edgeprune_device.vision.evaluation import EvaluationSet, evaluate
from fakes import hostile, large
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def rezip(data, change):
    """Copy the archive with its members changed by `change(dict)`."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def test_round_trip_keeps_the_bytes(labelled_pictures):
    data = EvaluationSet.pack(labelled_pictures)
    pictures = EvaluationSet.read(data)
    assert len(pictures) == 3 and pictures.boxes == 6
    for ours, (name, content, truth) in zip(pictures, labelled_pictures):
        assert (ours.name, ours.data) == (name, content) and np.array_equal(ours.truth, truth)
    assert EvaluationSet.pack(pictures) == data


def test_truth_json_matches_the_documentation(labelled_pictures):
    with zipfile.ZipFile(io.BytesIO(EvaluationSet.pack(labelled_pictures))) as archive:
        listing = json.loads(archive.read("truth.json"))
    assert listing["schema_version"] == 1
    assert listing["pictures"][0] == {"name": "p0.png", "boxes": [[0, 12, 12, 28, 28], [1, 38, 30, 50, 50]]}


def test_images_without_boxes_are_kept(labelled_pictures):
    name, content, _ = labelled_pictures[0]
    pictures = EvaluationSet.read(EvaluationSet.pack([(name, content, np.zeros((0, 5)))]))
    assert pictures.boxes == 0 and pictures.pictures[0].truth.shape == (0, 5)


@pytest.mark.parametrize("name", ["a/b.png", "../a.png", "", "a\n.png"])
def test_names_that_are_paths_are_refused(name, labelled_pictures):
    with pytest.raises(InputError, match="name"):
        EvaluationSet.pack([(name, *labelled_pictures[0][1:])])


def test_duplicate_names_are_refused(labelled_pictures):
    with pytest.raises(InputError, match="duplicate image name"):
        EvaluationSet.pack([labelled_pictures[0], labelled_pictures[0]])


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("truth.json"),
        lambda m: m.pop("pictures/p1.png"),
        lambda m: m.update({"truth.json": b"{"}),
        lambda m: m.update({"truth.json": m["truth.json"].replace(b'"schema_version":1', b'"schema_version":2')}),
        lambda m: m.update({"truth.json": m["truth.json"].replace(b"12.0", b"1e999")}),
        lambda m: m.update({"truth.json": m["truth.json"].replace(b"p1.png", b"../1.png")}),
    ],
)
def test_damaged_sets_are_refused_in_one_line(labelled_pictures, change):
    data = rezip(EvaluationSet.pack(labelled_pictures), change)
    with pytest.raises(InputError, match=r"^a\.epb: ") as caught:
        EvaluationSet.read(data, "a.epb")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", hostile.ZIPS)
def test_malicious_evaluation_sets_give_a_one_line_error(what):
    with pytest.raises(InputError) as caught:
        EvaluationSet.read(hostile.ZIPS[what], "x")
    assert str(caught.value).startswith("x: ") and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_overlapping_entries_are_refused():
    with pytest.raises(InputError, match="entries larger than the archive"):
        EvaluationSet.read(hostile.ZIPS["overlapping images"], "x")


def test_zip_bomb_is_not_expanded():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("truth.json", b"0" * 5_000_000)
    with pytest.raises(InputError, match="expected a stored file"):
        EvaluationSet.read(stream.getvalue())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1), value=st.integers(0, 255), cut=st.booleans())
def test_any_damage_is_read_or_refused_in_one_line(labelled_pictures, position, value, cut):
    data = bytearray(EvaluationSet.pack(labelled_pictures))
    i = min(int(position * len(data)), len(data) - 1)
    if cut:
        del data[i:]
    else:
        data[i] = value
    try:
        EvaluationSet.read(bytes(data))
    except InputError as error:
        assert "\n" not in str(error)


def test_evaluate_runs_the_complete_pipeline(labelled_pictures, tiny_onnx):
    pytest.importorskip("onnxruntime")
    done = []
    with runtimes.open(tiny_onnx, "ort", runtimes.RuntimeSettings(1)) as session:
        accuracy, detections = evaluate(
            session, labelled_pictures, imgsz=64, classes=["person", "car"], kind="raw", progress=done.append
        )
    assert accuracy.map50_95 == pytest.approx(1) and accuracy.boxes == 6 and done == [1, 2, 3]
    assert detections[0].shape == (2, 6)
    assert np.allclose(detections[0][:, :4], labelled_pictures[0][2][:, 1:], atol=1e-3)
    # The brighter image scores higher, which shows that the pixels reached the model.
    assert detections[0][0, 4] == pytest.approx(0.9, abs=1e-5) and detections[1][0, 4] < detections[0][0, 4]


def test_evaluate_accepts_any_object_with_infer(labelled_pictures):
    class Blind:
        def infer(self, x):
            assert x.shape == (1, 3, 64, 64)
            return [np.zeros((1, 6, 84), np.float32)]

    accuracy, detections = evaluate(Blind(), EvaluationSet(()), imgsz=64, classes=2, kind="raw")
    assert accuracy.map50_95 is None and detections == []
    accuracy, _ = evaluate(Blind(), labelled_pictures, imgsz=(64, 64), classes=2, kind="raw")
    assert accuracy.map50_95 == 0


def test_error_of_a_too_large_evaluation_image_names_it(labelled_pictures):
    pictures = EvaluationSet.read(EvaluationSet.pack([("big.jpg", large.jpeg(9000, 8000), np.zeros((0, 5)))]))
    with pytest.raises(InputError, match=r"^big\.jpg: the image is too large to decode"):
        evaluate(None, pictures, imgsz=64, classes=1, kind="raw")
