import importlib
import io

import numpy as np
import pytest
from edgeprune_device import vision
from edgeprune_device.errors import InputError
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
    vision._opencv.cache_clear()
    if request.param == "numpy":
        monkeypatch.setenv("EDGEPRUNE_OPENCV", "0")
    elif not vision.uses_opencv():
        pytest.skip("OpenCV is not installed")
    assert vision.uses_opencv() == (request.param == "opencv")
    yield request.param
    vision._opencv.cache_clear()


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
    assert np.array_equal(vision.decode(data), image)
    decoded = vision.decode(tmp_path / "a.png")
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
    decoded = vision.decode(data)
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
    decoded = vision.decode(data)
    assert decoded.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    plain = vision.decode(saved(image, "JPEG", quality=95))
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
        with pytest.raises(InputError, match=r"bad\.jpg: not a picture") as caught:
            vision.decode(source, name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_truncated_pictures(kind):
    data = saved(Image.fromarray(noise((64, 64))), kind)
    with pytest.raises(InputError, match=r"cut: not a picture"):
        vision.decode(data[: len(data) // 2], "cut")


def test_floats_are_refused_and_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputError, match="mode F"):
        vision.decode(saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "x.tif")
    with pytest.raises(InputError, match="no such file"):
        vision.decode(tmp_path / "none.jpg")


# letterbox


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [320, 640])
def test_numpy_resizes_as_opencv(shape, size):
    cv2 = pytest.importorskip("cv2")
    image = noise(shape)
    scale = size / max(shape)
    h, w = vision._resized(shape, scale)
    expected = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    assert np.abs(vision.resize_numpy(image, h, w).astype(int) - expected).max() <= 1


def test_numpy_resizes_to_the_bit_on_random_shapes():
    cv2 = pytest.importorskip("cv2")
    equal = 0
    for h0, w0, h1, w1 in RNG.integers(1, 200, (150, 4)).tolist():
        image = noise((h0, w0))
        expected = cv2.resize(image, (w1, h1), interpolation=cv2.INTER_LINEAR)
        difference = np.abs(vision.resize_numpy(image, h1, w1).astype(int) - expected)
        assert difference.max() <= 1
        equal += not difference.any()
    assert equal >= 145  # all of them with OpenCV 4.5 to 5.0 on x86-64; ARM has other SIMD paths


def test_resize_known_values():
    image = np.array([[0, 100], [200, 40]], np.uint8)[:, :, None].repeat(3, 2)
    assert vision.resize_numpy(image, 1, 1)[0, 0].tolist() == [85] * 3  # the mean of four
    wide = vision.resize_numpy(image[:1], 1, 4)[0, :, 0]
    assert wide.tolist() == [0, 25, 75, 100]  # half-pixel centres, edges held


def test_letterbox_layout(resizer):
    image = np.full((100, 200, 3), 255, np.uint8)
    x, box = vision.letterbox(image, 64)
    assert x.shape == (1, 3, 64, 64) and x.dtype == np.float32 and x.flags["C_CONTIGUOUS"]
    assert box == vision.Letterbox((64, 64), 0.32, 0, 16, (100, 200)) and box.resized == (32, 64)
    grey = np.float32(114) / np.float32(255)
    assert (x[0, :, :16] == grey).all() and (x[0, :, 48:] == grey).all() and (x[0, :, 16:48] == 1).all()


def test_letterbox_keeps_rgb_order(resizer):
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 0] = 255
    x, _ = vision.letterbox(image, 64)
    assert x[0, 0].min() == 1 and x[0, 1:].max() == 0


def test_rectangular_size(resizer):
    x, box = vision.letterbox(noise((512, 640)), (256, 320))
    assert x.shape == (1, 3, 256, 320) and (box.left, box.top) == (0, 0)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_letterbox_refuses_what_is_not_a_picture(image):
    with pytest.raises(InputError, match="letterbox takes"):
        vision.letterbox(image, 64)


@pytest.mark.parametrize("shape", SHAPES)
def test_undo_brings_back_the_corners_and_clips(shape):
    _, box = vision.letterbox(np.zeros((*shape, 3), np.uint8), 640)
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
    found = vision.detections([out], classes=2, conf=0.25)
    assert found.dtype == np.float32
    assert np.allclose(found, [[41, 40, 61, 60, 0.9, 0], [40, 40, 60, 60, 0.7, 1]])
    assert len(vision.detections([out], classes=2, conf=0.25, agnostic=True)) == 1
    assert len(vision.detections([out], classes=2, conf=0.25, max_det=1)) == 1
    assert len(vision.detections([out], classes=2, conf=0.05)) == 3


def test_multi_label_gives_every_class_above_conf():
    out = raw([(50, 50, 20, 20, {0: 0.8, 1: 0.6})], classes=2)
    assert vision.detections([out], classes=2, conf=0.25)[:, 5].tolist() == [0]
    assert vision.detections([out], classes=2, conf=0.25, multi_label=True)[:, 5].tolist() == [0, 1]


def test_nothing_found_and_nan_scores():
    out = raw([], classes=3)
    assert vision.detections([out], classes=3, conf=0.25).shape == (0, 6)
    out[0, 4:] = np.nan
    assert vision.detections([out], classes=3, conf=0.25).shape == (0, 6)
    assert vision.detections([out[:, :5]], classes=1, conf=0.0, multi_label=True).shape == (0, 6)


def test_half_precision_output():
    out = raw([(50, 50, 20, 20, {0: 0.5})], classes=2).astype(np.float16)
    assert np.allclose(vision.detections([out], classes=2, conf=0.25), [[40, 40, 60, 60, 0.5, 0]])


def test_end_to_end_output_is_only_filtered():
    rows = np.array([[1, 2, 3, 4, 0.9, 0], [1, 2, 3, 4, 0.8, 0], [0, 0, 9, 9, 0.2, 1]], np.float32)
    assert np.array_equal(vision.detections([rows[None]], classes=2, conf=0.25), rows[:2])
    assert len(vision.detections([rows[None]], classes=2, conf=0.25, max_det=1)) == 1


def test_six_anchors_with_matching_rows_are_raw():
    assert vision.detections([np.zeros((1, 6, 6), np.float32)], classes=2, conf=0.25).shape == (0, 6)


@pytest.mark.parametrize("shape", [(1, 84, 8400), (84, 8400), (2, 6, 100), (1, 6, 100, 1)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match="check the class list"):
        vision.detections([np.zeros(shape, np.float32)], classes=2, conf=0.25)


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
    found = vision.detections([out], classes=classes, conf=conf, multi_label=multi_label)
    assert found.shape == expected.shape and len(found) > 10
    assert np.abs(found[:, :4] - expected[:, :4]).max() < 1e-3
    assert np.array_equal(found[:, 4:], expected[:, 4:])


@pytest.mark.parametrize("shape", SHAPES)
def test_letterbox_and_undo_are_those_of_ultralytics(shape, resizer):
    augment, ops = pytest.importorskip("ultralytics.data.augment"), pytest.importorskip("ultralytics.utils.ops")
    image = noise(shape)
    expected = augment.LetterBox((640, 640), auto=False, scaleup=True)(image=image)
    x, box = vision.letterbox(image, 640)
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
        x, box = vision.letterbox(vision.decode(path), 320)
        with torch.inference_mode():
            out = yolo.model(torch.from_numpy(x))[0].numpy()
        ours = box.undo(vision.detections([out], classes=4, conf=0.25))
        assert ours.shape == theirs.shape
        assert np.abs(ours[:, :4] - theirs[:, :4]).max(initial=0) < 0.5
        assert np.abs(ours[:, 4] - theirs[:, 4]).max(initial=0) < 1e-3
        assert np.array_equal(ours[:, 5], theirs[:, 5])
        compared += len(ours)
    assert compared >= 5


def test_decode_is_that_of_ultralytics_on_real_pictures(shared_data):
    patches = pytest.importorskip("ultralytics.utils.patches")
    folders = ["coco8/images/val", "hit-uav-mini/images/val", "aerial-cars-mini/images/val"]
    paths = [path for folder in folders for path in sorted((shared_data / folder).iterdir())[:3]]
    assert len(paths) >= 8
    for path in paths:
        theirs = patches.imread(str(path))[:, :, ::-1]
        ours = vision.decode(path)
        assert ours.shape == theirs.shape
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.max() <= 3 and difference.mean() < 0.05, path.name  # two builds of libjpeg
