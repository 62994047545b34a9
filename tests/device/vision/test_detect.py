import importlib
import tracemalloc

import numpy as np
import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.output import END2END, RAW
from edgeprune_device.vision import preprocess
from edgeprune_device.vision.detect import detections
from hypothesis import given, settings
from hypothesis import strategies as st

# detections


def raw(rows, classes, anchors=20):
    """[(cx, cy, w, h, {class: score})] -> (1, 4+classes, anchors)."""
    out = np.zeros((1, 4 + classes, anchors), np.float32)
    for i, (cx, cy, w, h, scores) in enumerate(rows):
        out[0, :4, i] = cx, cy, w, h
        for c, score in scores.items():
            out[0, 4 + c, i] = score
    return out


def test_nms_keeps_the_best_and_other_classes():
    out = raw(
        [
            (50, 50, 20, 20, {0: 0.8}),
            (51, 50, 20, 20, {0: 0.9}),
            (50, 50, 20, 20, {1: 0.7}),
            (90, 90, 10, 10, {1: 0.1}),
        ],
        classes=2,
    )
    kept = detections([out], RAW, classes=2, conf=0.25)
    assert kept.dtype == np.float32
    assert np.allclose(kept, [[41, 40, 61, 60, 0.9, 0], [40, 40, 60, 60, 0.7, 1]])
    assert len(detections([out], RAW, classes=2, conf=0.25, agnostic=True)) == 1
    assert len(detections([out], RAW, classes=2, conf=0.25, max_det=1)) == 1
    assert len(detections([out], RAW, classes=2, conf=0.05)) == 3


def test_multi_label_gives_every_class_above_conf():
    out = raw([(50, 50, 20, 20, {0: 0.8, 1: 0.6})], classes=2)
    assert detections([out], RAW, classes=2, conf=0.25)[:, 5].tolist() == [0]
    assert detections([out], RAW, classes=2, conf=0.25, multi_label=True)[:, 5].tolist() == [0, 1]


def test_no_detections_and_nan_scores():
    out = raw([], classes=3)
    assert detections([out], RAW, classes=3, conf=0.25).shape == (0, 6)
    out[0, 4:] = np.nan
    assert detections([out], RAW, classes=3, conf=0.25).shape == (0, 6)
    assert detections([out[:, :5]], RAW, classes=1, conf=0.0, multi_label=True).shape == (0, 6)


def test_half_precision_output():
    out = raw([(50, 50, 20, 20, {0: 0.5})], classes=2).astype(np.float16)
    assert np.allclose(detections([out], RAW, classes=2, conf=0.25), [[40, 40, 60, 60, 0.5, 0]])


def test_end_to_end_output_is_only_filtered():
    rows = np.array([[1, 2, 3, 4, 0.9, 0], [1, 2, 3, 4, 0.8, 0], [0, 0, 9, 9, 0.2, 1]], np.float32)
    assert np.array_equal(detections([rows[None]], END2END, classes=2, conf=0.25), rows[:2])
    assert len(detections([rows[None]], END2END, classes=2, conf=0.25, max_det=1)) == 1


def test_stated_kind_decides_an_ambiguous_shape():
    """(1, 84, 6) is raw output of six anchors with 80 classes, or 84 rows."""
    out = np.zeros((1, 84, 6), np.float32)
    out[0, 0] = 10, 20, 30, 40, 0.9, 7
    assert np.array_equal(detections([out], END2END, classes=80, conf=0.25), out[0, :1])
    assert detections([out], RAW, classes=80, conf=0.25).shape == (0, 6)
    out[0, :4], out[0, 4 + 7, 3] = 20, 0.8
    assert np.allclose(detections([out], RAW, classes=80, conf=0.25), [[10, 10, 30, 30, 0.8, 7]])


@pytest.mark.parametrize(
    "kind, shape",
    [
        (RAW, (1, 84, 8400)),
        (RAW, (6, 100)),
        (RAW, (2, 6, 100)),
        (RAW, (1, 6, 100, 1)),
        (RAW, (1, 300, 6)),
        (END2END, (1, 6, 100)),
        (END2END, (1, 300, 7)),
        (END2END, (2, 300, 6)),
        (END2END, (300, 6)),
    ],
)
def test_shape_that_contradicts_the_stated_kind_is_refused(kind, shape):
    with pytest.raises(InputError, match=rf"for the kind {kind} \(found .*check the class list") as caught:
        detections([np.zeros(shape, np.float32)], kind, classes=2, conf=0.25)
    assert "\n" not in str(caught.value)


def test_kind_is_not_guessed():
    with pytest.raises(InputError, match="found '', expected raw, best or end2end"):
        detections([np.zeros((1, 6, 100), np.float32)], "", classes=2, conf=0.25)


def test_overlap_of_exactly_iou_is_decided_as_in_torchvision():
    # 3 / 5 in float32 is 0.60000002, above the float64 0.6 that torchvision compares with.
    out = raw([(2.5, 5, 5, 10, {0: 0.9}), (1.5, 5, 3, 10, {0: 0.8})], classes=1)
    assert len(detections([out], RAW, classes=1, conf=0.25, iou=0.6)) == 1
    assert len(detections([out], RAW, classes=1, conf=0.25, iou=0.600001)) == 2
    half = raw([(2, 5, 4, 10, {0: 0.9}), (1, 5, 2, 10, {0: 0.8})], classes=1)
    assert len(detections([half], RAW, classes=1, conf=0.25, iou=0.5)) == 2  # not above


def test_boxes_with_subnormal_areas_follow_the_rounding_of_float32():
    # Areas of one and two of float32's smallest steps: the IoU of one third is rounded to 1.
    unit = np.float32(3.9e-23)
    boxes = [(unit, 0, 2 * unit, unit / 2, {0: 0.9}), (2 * unit, 0, 2 * unit, unit / 2, {0: 0.8})]
    out = raw(boxes, classes=1)
    assert len(detections([out], RAW, classes=1, conf=0.25)) == len(
        plain(out, conf=0.25, iou=0.7, max_det=300, multi_label=False, agnostic=False)
    )
    assert len(detections([out], RAW, classes=1, conf=0.25)) == 1


# comparison with a plain NMS


def plain(out, *, conf, iou, max_det, multi_label, agnostic):
    """The definition, box by box, best first: a box that overlaps a kept one of its class is removed."""
    candidates = []
    for column in out[0].T:
        scores = column[4:]
        if not scores.max() > conf:
            continue
        labels = np.flatnonzero(scores > conf) if multi_label and len(scores) > 1 else [scores.argmax()]
        half = column[2:4] / 2
        for label in labels:
            candidates.append([*(column[:2] - half), *(column[:2] + half), scores[label], np.float32(label)])
    candidates.sort(key=lambda row: -row[4])
    rows = np.array(candidates, np.float32).reshape(-1, 6)
    boxes = rows[:, :4] + rows[:, 5:] * np.float32(0 if agnostic else 7680)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive, kept = np.ones(len(rows), bool), []
    for i in range(len(rows)):
        if not alive[i] or len(kept) == max_det:
            continue
        kept.append(i)
        w = np.minimum(boxes[i, 2], boxes[:, 2]) - np.maximum(boxes[i, 0], boxes[:, 0])
        h = np.minimum(boxes[i, 3], boxes[:, 3]) - np.maximum(boxes[i, 1], boxes[:, 1])
        both = np.maximum(w, 0) * np.maximum(h, 0)
        alive &= ~((both / (area[i] + area - both)).astype(np.float64) > iou)
    return rows[kept]


@st.composite
def outputs(draw):
    """(1, 4+nc, N) float32: any floats, integers (boxes coincide) or clusters, in up to three blocks."""
    classes, kind = draw(st.integers(1, 5)), draw(st.sampled_from(["any", "whole", "clusters", "tiny"]))
    if kind == "any":
        anchors = draw(st.integers(0, 12))
        size = (4 + classes) * anchors
        values = draw(st.lists(st.floats(width=32), min_size=size, max_size=size))
        return np.array(values, np.float32).reshape(1, 4 + classes, anchors)
    rng, anchors = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.integers(1, 1300))
    if kind == "clusters":
        return random_output(classes, anchors, rng)
    out = rng.integers(0, draw(st.integers(2, 60)), (1, 4 + classes, anchors)).astype(np.float32)
    out[:, 4:] = rng.choice(np.array([0, 0.1, 0.3, 0.5, 0.9, np.nan, np.inf], np.float32), (1, classes, anchors))
    if kind == "tiny":  # areas below the smallest number of float32
        out[:, :4] *= np.float32(draw(st.sampled_from([1e-18, 1e-20, 1e-22, 1e-40])))
    return out


@settings(max_examples=250, deadline=None)
@given(
    out=outputs(),
    conf=st.sampled_from([0.0, 0.001, 0.25]),
    iou=st.one_of(st.sampled_from([0.0, 0.5, 0.6, 0.7, 1.0]), st.floats(0, 1)),
    max_det=st.sampled_from([1, 7, 300, 30000]),
    multi_label=st.booleans(),
    agnostic=st.booleans(),
)
def test_any_output_gives_the_result_of_a_plain_nms(out, **options):
    ours = detections([out], RAW, classes=out.shape[1] - 4, **options)
    with np.errstate(all="ignore"):
        expected = plain(out, **options)
    assert ours.dtype == np.float32 and ours.flags["C_CONTIGUOUS"]
    assert np.array_equal(np.nan_to_num(ours), np.nan_to_num(expected))
    assert np.array_equal(np.isnan(ours), np.isnan(expected))
    assert len(ours) <= options["max_det"] and (ours[:, 4] > options["conf"]).all()
    assert (ours[1:, 4] <= ours[:-1, 4]).all()


@pytest.mark.parametrize("shape", ["one place", "a column", "a row", "a chain"])
def test_model_with_detections_everywhere_needs_little_time_and_memory(shape):
    out = np.zeros((1, 5, 8400), np.float32)
    steps = np.arange(8400, dtype=np.float32)
    out[0, :4] = [[50], [50], [20], [20]]
    out[0, 4] = np.linspace(1, 0.5, 8400)
    if shape != "one place":
        out[0, 1 if shape == "a column" else 0] = steps * (2 if shape == "a chain" else 30)
    tracemalloc.start()
    kept = detections([out], RAW, classes=1, conf=0.25, max_det=2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(kept) == (1 if shape == "one place" else 2000)
    assert np.array_equal(kept, plain(out, conf=0.25, iou=0.7, max_det=2000, multi_label=False, agnostic=False))
    assert peak < 48 << 20  # all pairs of 2,000 and 8,400 boxes would need ten times as much


# comparison with Ultralytics


def random_output(classes, boxes, rng):
    """Clusters of overlapping boxes, as from a detector."""
    centres = rng.uniform(50, 590, (max(boxes // 12, 1), 2))
    cxcy = centres[rng.integers(0, len(centres), boxes)] + rng.normal(0, 4, (boxes, 2))
    scores = rng.random((classes, boxes)) ** 6
    return np.concatenate([cxcy.T, rng.uniform(10, 60, (2, boxes)), scores]).astype(np.float32)[None]


@pytest.mark.parametrize("classes, boxes", [(1, 300), (4, 2100), (80, 1500)])
@pytest.mark.parametrize("conf, multi_label", [(0.25, False), (0.001, True), (0.001, False)])
def test_nms_equals_ultralytics(classes, boxes, conf, multi_label):
    torch, nms = pytest.importorskip("torch"), pytest.importorskip("ultralytics.utils.nms")
    # Ultralytics uses torchvision's fast NMS if it is imported; its Python NMS takes minutes.
    pytest.importorskip("torchvision")
    out = random_output(classes, boxes, np.random.default_rng(classes))
    expected = nms.non_max_suppression(
        torch.from_numpy(out.copy()), conf, 0.7, multi_label=multi_label, max_det=300, nc=classes
    )[0].numpy()
    ours = detections([out], RAW, classes=classes, conf=conf, multi_label=multi_label)
    assert ours.shape == expected.shape and len(ours) > 10
    assert np.abs(ours[:, :4] - expected[:, :4]).max() < 1e-3
    assert np.array_equal(ours[:, 4:], expected[:, 4:])


def test_pipeline_equals_ultralytics_on_real_images(shared_data):
    torch, ultralytics = pytest.importorskip("torch"), pytest.importorskip("ultralytics")
    torch.set_num_threads(1)
    yolo = ultralytics.YOLO(str(shared_data / "weights" / "yolov8n-hituav-best.pt"))
    pictures = sorted((shared_data / "hit-uav-mini" / "images" / "val").iterdir())[:3]
    compared = 0
    for path in pictures:
        options = {"imgsz": 320, "conf": 0.25, "iou": 0.7, "rect": False, "verbose": False, "device": "cpu"}
        theirs = yolo.predict(str(path), **options)[0].boxes.data.numpy()
        x, box = preprocess.letterbox(preprocess.decode(path), 320)
        with torch.inference_mode():
            out = yolo.model(torch.from_numpy(x))[0].numpy()
        ours = box.undo(detections([out], RAW, classes=4, conf=0.25))
        assert ours.shape == theirs.shape
        assert np.abs(ours[:, :4] - theirs[:, :4]).max(initial=0) < 0.5
        assert np.abs(ours[:, 4] - theirs[:, 4]).max(initial=0) < 1e-3
        assert np.array_equal(ours[:, 5], theirs[:, 5])
        compared += len(ours)
    assert compared >= 5


@pytest.mark.parametrize(
    "weights, folder, size, count",
    [("yolov8n-hituav-best", "hit-uav-mini/images/val", 512, 20), ("yolov8n-coco-rebuilt", "coco128/images", 640, 10)],
)
def test_thousands_of_real_boxes_equal_ultralytics(weights, folder, size, count, shared_data):
    torch, ultralytics = pytest.importorskip("torch"), pytest.importorskip("ultralytics")
    pytest.importorskip("torchvision")
    augment, ops = importlib.import_module("ultralytics.data.augment"), importlib.import_module("ultralytics.utils.ops")
    nms = importlib.import_module("ultralytics.utils.nms")
    model = ultralytics.YOLO(str(shared_data / "weights" / f"{weights}.pt")).model.eval()
    box_of = augment.LetterBox((size, size), auto=False)
    pre, compared = preprocess.Preprocessor(size), 0
    paths = sorted(path for path in (shared_data / folder).rglob("*") if path.suffix in (".jpg", ".png"))
    for path in paths[:count]:
        image = preprocess.decode(path)
        x, box = pre(image)
        theirs = torch.from_numpy(box_of(image=image[:, :, ::-1].copy())[None])
        theirs = theirs.permute(0, 3, 1, 2).contiguous().flip(1).float().div_(255)
        if preprocess.uses_opencv():
            assert np.array_equal(x, theirs.numpy())
        with torch.inference_mode():
            out = model(theirs)[0].numpy()
        for conf, multi_label in [(0.25, False), (0.001, False), (0.001, True)]:
            options = {"multi_label": multi_label, "max_det": 300}
            expected = nms.non_max_suppression(torch.from_numpy(out.copy()), conf, 0.7, **options)[0]
            expected[:, :4] = ops.scale_boxes((size, size), expected[:, :4], image.shape)
            ours = box.undo(detections([out], RAW, classes=out.shape[1] - 4, conf=conf, **options))
            assert ours.shape == tuple(expected.shape)
            assert np.abs(ours[:, :4] - expected[:, :4].numpy()).max(initial=0) < 1e-3  # px
            assert np.array_equal(ours[:, 4:], expected[:, 4:].numpy())
            compared += len(ours)
    assert compared > 2000
