import importlib
import io

import numpy as np
import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.layouts import FLOAT32_NCHW, UINT8_NHWC
from edgeprune_device.vision import preprocess
from fakes import large
from PIL import Image, ImageFile

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
    """Run the test with both ways of resizing."""
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
def test_modes_are_read_as_by_opencv(mode):
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
def test_exif_orientation_is_applied_as_by_opencv(orientation):
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


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + b"\0" * 50])
def test_error_of_a_damaged_image_names_the_file(tmp_path, content):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    for source, name in ((path, ""), (content, "bad.jpg")):
        wrong = "not an image" if content else "the file is empty"
        with pytest.raises(InputError, match=rf"bad\.jpg: {wrong}") as caught:
            preprocess.decode(source, name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_truncated_images_are_refused(kind):
    data = saved(Image.fromarray(noise((64, 64))), kind)
    with pytest.raises(InputError, match=r"cut: not an image"):
        preprocess.decode(data[: len(data) // 2], "cut")


def test_float_images_and_missing_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="mode F"):
        preprocess.decode(saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "x.tif")
    with pytest.raises(InputError, match="no such file"):
        preprocess.decode(tmp_path / "none.jpg")


# letterbox


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [320, 640])
def test_numpy_resizes_like_opencv(shape, size):
    cv2 = pytest.importorskip("cv2")
    image = noise(shape)
    scale = size / max(shape)
    h, w = preprocess._resized(shape, scale)
    try:
        expected = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    except cv2.error:
        assert shape == (1, 1)
        pytest.skip("this OpenCV refuses images of a single pixel")
    assert np.abs(preprocess.resize_numpy(image, h, w).astype(int) - expected).max() <= 1


def test_numpy_resizes_like_opencv_to_the_bit_on_random_shapes():
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
def test_odd_multiples_select_the_pixels_that_opencv_selects(times):
    cv2 = pytest.importorskip("cv2")
    for h, w in [(1, 1), (4, 7), (31, 20), (180, 320)]:
        image = noise((h * times[0], w * times[1]))
        resized = preprocess.resize_numpy(image, h, w)
        assert np.array_equal(resized, cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR))
        assert np.shares_memory(resized, image)


@pytest.mark.parametrize("times", [(2, 2), (2, 3), (3, 2), (1, 2), (2, 1), (4, 1), (4, 6), (6, 6)])
def test_even_multiples_are_mixed_as_by_opencv(times):
    cv2 = pytest.importorskip("cv2")
    for h, w in [(2, 2), (4, 7), (31, 20), (180, 320)]:
        image = noise((h * times[0], w * times[1]))
        expected = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(preprocess.resize_numpy(image, h, w), expected)


@pytest.mark.parametrize("fine", [False, True])
def test_interpolation_in_16_bits_equals_32_bits(fine):
    """All weights, with the extreme and many random pairs of pixels."""
    weights = np.arange(0, 2049, 1 if fine else 16)
    pairs = np.concatenate(
        [[[0, 255], [255, 0], [255, 255], [0, 0], [1, 0], [254, 255]], RNG.integers(0, 256, (60, 2))]
    )
    first, second = np.arange(len(weights)), np.arange(len(weights)) + len(weights)
    rows = pairs.repeat(len(weights), axis=1).astype(np.uint8)
    given = (weights >> 4).astype(np.int16), (weights & 15).astype(np.int16) if fine else None
    across = preprocess._across(rows, first, second, *given)
    assert np.array_equal(across, (pairs[:, :1] * (2048 - weights) + pairs[:, 1:] * weights) >> 4)


def test_resize_gives_known_values():
    image = np.array([[0, 100], [200, 40]], np.uint8)[:, :, None].repeat(3, 2)
    assert preprocess.resize_numpy(image, 1, 1)[0, 0].tolist() == [85] * 3  # the mean of four
    wide = preprocess.resize_numpy(image[:1], 1, 4)[0, :, 0]
    assert wide.tolist() == [0, 25, 75, 100]  # half-pixel centres, edges clamped


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
def test_letterbox_equals_the_resized_image_divided_by_255_to_the_last_bit(shape, resizer):
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


def test_image_may_be_a_view(resizer):
    image = noise((50, 70))
    for view in (image[:, :, ::-1], image[::-1], image[5:45, 3:60], image.transpose(1, 0, 2)):
        for size in (57, 64, (40, 57)):
            assert np.array_equal(preprocess.letterbox(view, size)[0], preprocess.letterbox(view.copy(), size)[0])


# Preprocessor


def test_preprocessor_equals_letterbox_after_any_other_image(resizer):
    pre = preprocess.Preprocessor((64, 96))
    for shape in [(64, 96), (30, 40), (30, 40), (90, 20), (1, 1), (30, 40), (128, 192), (192, 288), (64, 96)] * 2:
        image = noise(shape)
        x, box = pre(image)
        expected, expected_box = preprocess.letterbox(image, (64, 96))
        assert np.array_equal(x, expected) and box == expected_box
        assert x.shape == (1, 3, 64, 96) and x.dtype == np.float32 and x.flags["C_CONTIGUOUS"] and x.flags["ALIGNED"]


def test_pixels_divided_by_255_equal_the_floats_to_the_last_bit(resizer):
    size = (64, 96)
    pixels, floats = (preprocess.Preprocessor(size, layout) for layout in (UINT8_NHWC, FLOAT32_NCHW))
    views = [noise((70, 120))[::-1, ::-1], noise((40, 50))[:, ::2], noise((40, 200))[:, 10:30]]
    for image in [
        *map(noise, [(64, 96), (30, 40), (90, 20), (1, 1), (128, 192), (192, 288), (1, 300), (64, 96)]),
        *views,
    ]:
        (x, box), (y, other) = pixels(image), floats(image)
        assert x.shape == (1, *size, 3) and x.dtype == np.uint8 and x.flags["C_CONTIGUOUS"] and box == other
        # The arithmetic of the device variant: Cast, Transpose, Div.
        assert np.array_equal(x.astype(np.float32).transpose(0, 3, 1, 2) / np.float32(255), y)


def test_memory_of_pixels_is_reused_and_not_overwritten():
    pre = preprocess.Preprocessor(32, UINT8_NHWC)
    held = [(image, pre(image)[0]) for image in (noise((32, 20)) for _ in range(8))]
    for image, x in held:
        assert np.array_equal(x, preprocess.letterbox(image, 32, UINT8_NHWC)[0])
    address = held[0][1].__array_interface__["data"][0]
    del held, x
    assert address in {pre(noise((20, 32)))[0].__array_interface__["data"][0] for _ in range(4)}


def test_memory_of_a_referenced_array_is_not_overwritten():
    pictures = [noise((32, 20)) for _ in range(12)]
    for hold in (lambda x: x, lambda x: x[0, 1, :, 5:9], lambda x: x[0][1:].T, memoryview):
        pre = preprocess.Preprocessor(32)
        held = [hold(pre(image)[0]) for image in pictures]
        for image, part in zip(pictures, held):
            assert np.array_equal(np.asarray(part), np.asarray(hold(preprocess.letterbox(image, 32)[0])))


def test_memory_of_an_unreferenced_array_is_reused():
    pre = preprocess.Preprocessor(32)
    addresses = set()
    before = None  # one frame is referenced while the next is made, as in a pipeline
    for _ in range(20):
        x = pre(noise((32, 32)))[0]
        addresses.add(x.__array_interface__["data"][0])  # x.ctypes references x in numpy 1.17
        before = x
    assert before is not None and len(addresses) == 2


def test_preprocessor_works_after_refusing_an_invalid_image():
    pre = preprocess.Preprocessor(32)
    with pytest.raises(InputError, match="letterbox: not an image"):
        pre(np.zeros((4, 4), np.uint8))
    assert pre(noise((32, 32)))[0].shape == (1, 3, 32, 32)


def test_rectangular_size(resizer):
    x, box = preprocess.letterbox(noise((512, 640)), (256, 320))
    assert x.shape == (1, 3, 256, 320) and (box.left, box.top) == (0, 0)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_letterbox_refuses_an_invalid_image(image):
    with pytest.raises(InputError, match="letterbox: not an image"):
        preprocess.letterbox(image, 64)


@pytest.mark.parametrize("shape", SHAPES)
def test_undo_restores_the_corners_and_clips(shape):
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


# comparison with Ultralytics


@pytest.mark.parametrize("shape", SHAPES)
def test_letterbox_and_undo_equal_ultralytics(shape, resizer):
    augment, ops = pytest.importorskip("ultralytics.data.augment"), pytest.importorskip("ultralytics.utils.ops")
    image = noise(shape)
    expected = augment.LetterBox((640, 640), auto=False, scaleup=True)(image=image)
    x, box = preprocess.letterbox(image, 640)
    levels = np.abs(x[0].transpose(1, 2, 0) * 255 - expected)
    assert levels.max() <= (1.001 if resizer == "numpy" else 0.001)
    dets = np.array([[100, 120, 400, 500, 0.5, 0], [320, 320, 330, 345, 0.5, 0]], np.float32)
    theirs = ops.scale_boxes((640, 640), dets[:, :4].copy(), shape)
    assert np.abs(box.undo(dets)[:, :4] - theirs).max() < 1e-2


def test_decode_equals_ultralytics_on_real_images(shared_data):
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


# the limit on the size of images


@pytest.mark.parametrize("ending", large.FORMATS)
def test_large_image_is_refused_before_it_is_decoded(ending, monkeypatch):
    def load(self):
        raise AssertionError("the image was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(InputError) as error:
        preprocess.decode(large.FORMATS[ending](9000, 8000), f"a.{ending}")
    assert str(error.value) == (
        f"a.{ending}: the image is too large to decode (found 9000x8000 px, 72.0 megapixels, expected at most 50 "
        "megapixels); scale the image down, remove it, or raise max_megapixels"
    )


@pytest.mark.parametrize("size", [(65500, 65500), (1, 1_700_000_000)])
def test_image_above_pillows_limit_is_refused_with_the_same_message(size):
    with pytest.raises(
        InputError, match=r"^a\.png: .* \(found more than 178 megapixels, expected at most 50 megapixels\);"
    ):
        preprocess.decode(large.png(*size), "a.png")


def test_limit_applies_while_its_block_runs():
    data = saved(Image.new("RGB", (1200, 1000)))
    with preprocess.limited(1):
        with pytest.raises(InputError, match="expected at most 1 megapixels"):
            preprocess.decode(data, "a.png")
        with preprocess.limited(2):
            assert preprocess.decode(data).shape == (1000, 1200, 3)
    assert preprocess.decode(data).shape == (1000, 1200, 3)
