import importlib
import io
import tracemalloc

import numpy as np
import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.output import END2END, RAW
from edgeprune_device.vision import preprocess
from edgeprune_device.vision.postprocess import detections
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

RNG = np.random.default_rng(0)
SHAPES = [
    (1764, 430),
    (512, 640),
    (640, 512),
    (480, 640),
    (720, 1280),
    (1280, 1280),
    (3, 5),
    (1, 1),
    (7, 300),
    (300, 2),
]


@pytest.fixture(params=["numpy", "opencv"])
def resizer(request, monkeypatch):
    """Both ways of resizing."""
    preprocess._opencv.cache_clear()
    if request.param == "numpy":
        monkeypatch.setenv("EDGEPRUNE_OPENCV", "0")
    elif not preprocess.uses_opencv():
        pytest.skip("OpenCV is not installed")
    assert preprocess.uses_opencv() == (request.param == "opencv")
    yield request.param
    preprocess._opencv.cache_clear()


def noise(shape):
    return RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)


def saved(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


# decode


def test_rgb_order_from_path_and_bytes(tmp_path):
    image = noise((5, 7))
    data = saved(Image.fromarray(image))
    (tmp_path / "a.png").write_bytes(data)
    assert np.array_equal(preprocess.decode(data), image)
    decoded = preprocess.decode(tmp_path / "a.png")
    assert np.array_equal(decoded, image) and decoded.dtype == np.uint8 and decoded.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "I;16", "RGB"])
def test_modes_as_opencv_reads_them(mode):
    grey = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
    if mode == "I;16":
        deep = grey.astype(np.uint16) * 256 + 77
        image, expected = Image.fromarray(deep), np.stack([grey] * 3, 2)
    else:
        image = Image.fromarray(noise((6, 9)) if mode in ("P", "RGB", "RGBA") else grey).convert(mode)
        if mode in ("RGBA", "LA"):
            image.putalpha(Image.fromarray(grey))
        expected = np.asarray(image.convert("RGB"))
    data = saved(image)
    decoded = preprocess.decode(data)
    assert np.array_equal(decoded, expected)
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        return
    assert np.array_equal(decoded, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_opencv_does(orientation):
    image = Image.fromarray(np.kron(noise((4, 6)), np.ones((8, 8, 1), np.uint8)))  # 32 x 48, blocks survive JPEG
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, "JPEG", exif=exif.tobytes(), quality=95)
    decoded = preprocess.decode(data)
    assert decoded.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    plain = preprocess.decode(saved(image, "JPEG", quality=95))
    assert np.array_equal(decoded, plain) == (orientation == 1)
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        return
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert decoded.shape == expected.shape and np.abs(decoded.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + b"\0" * 50])
def test_damaged_pictures_name_the_file(tmp_path, content):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    for source, name in ((path, ""), (content, "bad.jpg")):
        wrong = "not a picture" if content else "the file is empty"
        with pytest.raises(InputError, match=rf"bad\.jpg: {wrong}") as caught:
            preprocess.decode(source, name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_truncated_pictures(kind):
    data = saved(Image.fromarray(noise((64, 64))), kind)
    with pytest.raises(InputError, match=r"cut: not a picture"):
        preprocess.decode(data[: len(data) // 2], "cut")


def test_floats_are_refused_and_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputError, match="mode F"):
        preprocess.decode(saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "x.tif")
    with pytest.raises(InputError, match="no such file"):
        preprocess.decode(tmp_path / "none.jpg")


# letterbox


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [320, 640])
def test_numpy_resizes_as_opencv(shape, size):
    cv2 = pytest.importorskip("cv2")
    image = noise(shape)
    scale = size / max(shape)
    h, w = preprocess._resized(shape, scale)
    try:
        expected = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    except cv2.error:
        assert shape == (1, 1)
        pytest.skip("this OpenCV refuses pictures of a single pixel")
    assert np.abs(preprocess.resize_numpy(image, h, w).astype(int) - expected).max() <= 1


def test_numpy_resizes_to_the_bit_on_random_shapes():
    cv2 = pytest.importorskip("cv2")
    equal = 0
    for h0, w0, h1, w1 in RNG.integers(1, 200, (150, 4)).tolist():
        image = noise((h0, w0))
        expected = cv2.resize(image, (w1, h1), interpolation=cv2.INTER_LINEAR)
        difference = np.abs(preprocess.resize_numpy(image, h1, w1).astype(int) - expected)
        assert difference.max() <= 1
        equal += not difference.any()
    assert equal >= 145  # all of them with OpenCV 4.5 to 5.0 on x86-64; ARM has other SIMD paths


@pytest.mark.parametrize("times", [(3, 3), (1, 3), (5, 1), (7, 7), (3, 9)])
def test_every_odd_pixel_is_what_opencv_makes_of_a_whole_multiple(times):
    cv2 = pytest.importorskip("cv2")
    for h, w in [(1, 1), (4, 7), (31, 20), (180, 320)]:
        image = noise((h * times[0], w * times[1]))
        found = preprocess.resize_numpy(image, h, w)
        assert np.array_equal(found, cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR))
        assert np.shares_memory(found, image)


@pytest.mark.parametrize("times", [(2, 2), (2, 3), (3, 2), (1, 2), (2, 1), (4, 1), (4, 6), (6, 6)])
def test_even_multiples_are_mixed_as_opencv_mixes_them(times):
    cv2 = pytest.importorskip("cv2")
    for h, w in [(2, 2), (4, 7), (31, 20), (180, 320)]:
        image = noise((h * times[0], w * times[1]))
        expected = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(preprocess.resize_numpy(image, h, w), expected)


def test_resize_known_values():
    image = np.array([[0, 100], [200, 40]], np.uint8)[:, :, None].repeat(3, 2)
    assert preprocess.resize_numpy(image, 1, 1)[0, 0].tolist() == [85] * 3  # the mean of four
    wide = preprocess.resize_numpy(image[:1], 1, 4)[0, :, 0]
    assert wide.tolist() == [0, 25, 75, 100]  # half-pixel centres, edges held


def test_letterbox_layout(resizer):
    image = np.full((100, 200, 3), 255, np.uint8)
    x, box = preprocess.letterbox(image, 64)
    assert x.shape == (1, 3, 64, 64) and x.dtype == np.float32 and x.flags["C_CONTIGUOUS"]
    assert box == preprocess.Letterbox((64, 64), 0.32, 0, 16, (100, 200)) and box.resized == (32, 64)
    grey = np.float32(114) / np.float32(255)
    assert (x[0, :, :16] == grey).all() and (x[0, :, 48:] == grey).all() and (x[0, :, 16:48] == 1).all()


def test_letterbox_keeps_rgb_order(resizer):
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 0] = 255
    x, _ = preprocess.letterbox(image, 64)
    assert x[0, 0].min() == 1 and x[0, 1:].max() == 0


@pytest.mark.parametrize("shape", [*SHAPES, (1080, 1920), (60, 96), (64, 64)])
def test_letterbox_is_the_resized_picture_by_255_to_the_last_bit(shape, resizer):
    image = noise(shape)
    x, box = preprocess.letterbox(image, 64)
    h, w = box.resized
    if resizer == "opencv" and (h, w) != shape and shape != (1, 1):
        small = importlib.import_module("cv2").resize(image, (w, h), interpolation=1)
    else:
        small = preprocess.resize_numpy(image, h, w)
    expected = np.full((64, 64, 3), 114, np.uint8)
    expected[box.top : box.top + h, box.left : box.left + w] = small
    assert np.array_equal(x[0], expected.transpose(2, 0, 1).astype(np.float32) / np.float32(255))


def test_a_picture_may_be_a_view(resizer):
    image = noise((50, 70))
    for view in (image[:, :, ::-1], image[::-1], image[5:45, 3:60], image.transpose(1, 0, 2)):
        for size in (57, 64, (40, 57)):
            assert np.array_equal(preprocess.letterbox(view, size)[0], preprocess.letterbox(view.copy(), size)[0])


# Preprocessor


def test_a_preprocessor_is_letterbox_whatever_came_before(resizer):
    pre = preprocess.Preprocessor((64, 96))
    for shape in [(64, 96), (30, 40), (30, 40), (90, 20), (1, 1), (30, 40), (128, 192), (192, 288), (64, 96)] * 2:
        image = noise(shape)
        x, box = pre(image)
        expected, expected_box = preprocess.letterbox(image, (64, 96))
        assert np.array_equal(x, expected) and box == expected_box
        assert x.shape == (1, 3, 64, 96) and x.dtype == np.float32 and x.flags["C_CONTIGUOUS"] and x.flags["ALIGNED"]


def test_what_is_held_is_never_written_again():
    pictures = [noise((32, 20)) for _ in range(12)]
    for hold in (lambda x: x, lambda x: x[0, 1, :, 5:9], lambda x: x[0][1:].T, memoryview):
        pre = preprocess.Preprocessor(32)
        held = [hold(pre(image)[0]) for image in pictures]
        for image, part in zip(pictures, held):
            assert np.array_equal(np.asarray(part), np.asarray(hold(preprocess.letterbox(image, 32)[0])))


def test_memory_that_nobody_holds_is_used_again():
    pre = preprocess.Preprocessor(32)
    addresses = set()
    before = None  # one frame is held while the next is made, as in a pipeline
    for _ in range(20):
        x = pre(noise((32, 32)))[0]
        addresses.add(x.__array_interface__["data"][0])  # x.ctypes holds x in numpy 1.17
        before = x
    assert before is not None and len(addresses) == 2


def test_a_preprocessor_refuses_what_is_not_a_picture_and_goes_on():
    pre = preprocess.Preprocessor(32)
    with pytest.raises(InputError, match="letterbox takes"):
        pre(np.zeros((4, 4), np.uint8))
    assert pre(noise((32, 32)))[0].shape == (1, 3, 32, 32)


def test_rectangular_size(resizer):
    x, box = preprocess.letterbox(noise((512, 640)), (256, 320))
    assert x.shape == (1, 3, 256, 320) and (box.left, box.top) == (0, 0)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_letterbox_refuses_what_is_not_a_picture(image):
    with pytest.raises(InputError, match="letterbox takes"):
        preprocess.letterbox(image, 64)


@pytest.mark.parametrize("shape", SHAPES)
def test_undo_brings_back_the_corners_and_clips(shape):
    _, box = preprocess.letterbox(np.zeros((*shape, 3), np.uint8), 640)
    h, w = box.resized
    dets = np.array(
        [[box.left, box.top, box.left + w, box.top + h, 0.5, 1], [-50, -50, 900, 900, 0.4, 0]], dtype=np.float32
    )
    back = box.undo(dets)
    assert np.allclose(back[0, :4], [0, 0, shape[1], shape[0]], atol=1e-3 * max(shape))
    assert np.allclose(back[1, :4], [0, 0, shape[1], shape[0]])
    assert back[:, 4:].tolist() == dets[:, 4:].tolist() and dets[1, 0] == -50  # a copy
    assert box.undo(np.zeros((0, 6), np.float32)).shape == (0, 6)


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
    found = detections([out], RAW, classes=2, conf=0.25)
    assert found.dtype == np.float32
    assert np.allclose(found, [[41, 40, 61, 60, 0.9, 0], [40, 40, 60, 60, 0.7, 1]])
    assert len(detections([out], RAW, classes=2, conf=0.25, agnostic=True)) == 1
    assert len(detections([out], RAW, classes=2, conf=0.25, max_det=1)) == 1
    assert len(detections([out], RAW, classes=2, conf=0.05)) == 3


def test_multi_label_gives_every_class_above_conf():
    out = raw([(50, 50, 20, 20, {0: 0.8, 1: 0.6})], classes=2)
    assert detections([out], RAW, classes=2, conf=0.25)[:, 5].tolist() == [0]
    assert detections([out], RAW, classes=2, conf=0.25, multi_label=True)[:, 5].tolist() == [0, 1]


def test_nothing_found_and_nan_scores():
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


def test_the_same_shape_is_what_it_is_stated_to_be():
    """(1, 84, 6): of 80 classes raw output of six anchors, or 84 rows."""
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
def test_a_shape_that_contradicts_what_is_stated_is_refused(kind, shape):
    with pytest.raises(InputError, match=f"has shape .*stated to be {kind}, .*check the class list") as caught:
        detections([np.zeros(shape, np.float32)], kind, classes=2, conf=0.25)
    assert "\n" not in str(caught.value)


def test_nothing_is_guessed_where_nothing_is_stated():
    with pytest.raises(InputError, match="stated as raw or end2end, not as ''"):
        detections([np.zeros((1, 6, 100), np.float32)], "", classes=2, conf=0.25)


def test_an_overlap_of_exactly_iou_is_decided_as_torchvision_does():
    # 3 / 5 in float32 is 0.60000002, above the float64 0.6 that torchvision compares with.
    out = raw([(2.5, 5, 5, 10, {0: 0.9}), (1.5, 5, 3, 10, {0: 0.8})], classes=1)
    assert len(detections([out], RAW, classes=1, conf=0.25, iou=0.6)) == 1
    assert len(detections([out], RAW, classes=1, conf=0.25, iou=0.600001)) == 2
    half = raw([(2, 5, 4, 10, {0: 0.9}), (1, 5, 2, 10, {0: 0.8})], classes=1)
    assert len(detections([half], RAW, classes=1, conf=0.25, iou=0.5)) == 2  # not above


def test_boxes_whose_area_float32_can_barely_hold_are_decided_by_its_rounding():
    # Areas of one and two of float32's smallest steps: the overlap is a third, but rounds to the whole.
    unit = np.float32(3.9e-23)
    boxes = [(unit, 0, 2 * unit, unit / 2, {0: 0.9}), (2 * unit, 0, 2 * unit, unit / 2, {0: 0.8})]
    out = raw(boxes, classes=1)
    assert len(detections([out], RAW, classes=1, conf=0.25)) == len(
        plain(out, conf=0.25, iou=0.7, max_det=300, multi_label=False, agnostic=False)
    )
    assert len(detections([out], RAW, classes=1, conf=0.25)) == 1


# beside a plain NMS


def plain(out, *, conf, iou, max_det, multi_label, agnostic):
    """The definition, one box after another: best first, gone is what overlaps a kept one of its class."""
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
    """(1, 4+nc, N) float32: any floats; whole numbers, so that boxes coincide; or clusters; up to three blocks."""
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
def test_any_output_gives_what_a_plain_nms_gives(out, **options):
    found = detections([out], RAW, classes=out.shape[1] - 4, **options)
    with np.errstate(all="ignore"):
        expected = plain(out, **options)
    assert found.dtype == np.float32 and found.flags["C_CONTIGUOUS"]
    assert np.array_equal(np.nan_to_num(found), np.nan_to_num(expected))
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    assert len(found) <= options["max_det"] and (found[:, 4] > options["conf"]).all()
    assert (found[1:, 4] <= found[:-1, 4]).all()


@pytest.mark.parametrize("shape", ["one place", "a column", "a row", "a chain"])
def test_a_broken_model_that_finds_everything_takes_neither_long_nor_much_memory(shape):
    out = np.zeros((1, 5, 8400), np.float32)
    steps = np.arange(8400, dtype=np.float32)
    out[0, :4] = [[50], [50], [20], [20]]
    out[0, 4] = np.linspace(1, 0.5, 8400)
    if shape != "one place":
        out[0, 1 if shape == "a column" else 0] = steps * (2 if shape == "a chain" else 30)
    tracemalloc.start()
    found = detections([out], RAW, classes=1, conf=0.25, max_det=2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == (1 if shape == "one place" else 2000)
    assert np.array_equal(found, plain(out, conf=0.25, iou=0.7, max_det=2000, multi_label=False, agnostic=False))
    assert peak < 48 << 20  # all pairs of 2,000 with 8,400 would take ten times as much


# beside Ultralytics


def random_output(classes, boxes, rng):
    """Clusters of overlapping boxes, as a detector gives them."""
    centres = rng.uniform(50, 590, (max(boxes // 12, 1), 2))
    cxcy = centres[rng.integers(0, len(centres), boxes)] + rng.normal(0, 4, (boxes, 2))
    scores = rng.random((classes, boxes)) ** 6
    return np.concatenate([cxcy.T, rng.uniform(10, 60, (2, boxes)), scores]).astype(np.float32)[None]


@pytest.mark.parametrize("classes, boxes", [(1, 300), (4, 2100), (80, 1500)])
@pytest.mark.parametrize("conf, multi_label", [(0.25, False), (0.001, True), (0.001, False)])
def test_nms_is_that_of_ultralytics(classes, boxes, conf, multi_label):
    torch, nms = pytest.importorskip("torch"), pytest.importorskip("ultralytics.utils.nms")
    pytest.importorskip("torchvision")  # imported, it serves Ultralytics its own, quick NMS; in Python it takes minutes
    out = random_output(classes, boxes, np.random.default_rng(classes))
    expected = nms.non_max_suppression(
        torch.from_numpy(out.copy()), conf, 0.7, multi_label=multi_label, max_det=300, nc=classes
    )[0].numpy()
    found = detections([out], RAW, classes=classes, conf=conf, multi_label=multi_label)
    assert found.shape == expected.shape and len(found) > 10
    assert np.abs(found[:, :4] - expected[:, :4]).max() < 1e-3
    assert np.array_equal(found[:, 4:], expected[:, 4:])


@pytest.mark.parametrize("shape", SHAPES)
def test_letterbox_and_undo_are_those_of_ultralytics(shape, resizer):
    augment, ops = pytest.importorskip("ultralytics.data.augment"), pytest.importorskip("ultralytics.utils.ops")
    image = noise(shape)
    expected = augment.LetterBox((640, 640), auto=False, scaleup=True)(image=image)
    x, box = preprocess.letterbox(image, 640)
    levels = np.abs(x[0].transpose(1, 2, 0) * 255 - expected)
    assert levels.max() <= (1.001 if resizer == "numpy" else 0.001)
    dets = np.array([[100, 120, 400, 500, 0.5, 0], [320, 320, 330, 345, 0.5, 0]], np.float32)
    theirs = ops.scale_boxes((640, 640), dets[:, :4].copy(), shape)
    assert np.abs(box.undo(dets)[:, :4] - theirs).max() < 1e-2


def test_the_whole_way_is_that_of_ultralytics_on_real_pictures(shared_data):
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
def test_thousands_of_real_boxes_are_those_of_ultralytics(weights, folder, size, count, shared_data):
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
            found = box.undo(detections([out], RAW, classes=out.shape[1] - 4, conf=conf, **options))
            assert found.shape == tuple(expected.shape)
            assert np.abs(found[:, :4] - expected[:, :4].numpy()).max(initial=0) < 1e-3  # px
            assert np.array_equal(found[:, 4:], expected[:, 4:].numpy())
            compared += len(found)
    assert compared > 2000


def test_decode_is_that_of_ultralytics_on_real_pictures(shared_data):
    patches = pytest.importorskip("ultralytics.utils.patches")
    folders = ["coco8/images/val", "hit-uav-mini/images/val", "aerial-cars-mini/images/val"]
    paths = [path for folder in folders for path in sorted((shared_data / folder).iterdir())[:3]]
    assert len(paths) >= 8
    for path in paths:
        theirs = patches.imread(str(path))[:, :, ::-1]
        ours = preprocess.decode(path)
        assert ours.shape == theirs.shape
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.max() <= 3 and difference.mean() < 0.05, path.name  # two builds of libjpeg
