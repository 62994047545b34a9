"""accuracy: the shapes of images. Accuracy and timing name an image that is missing or damaged."""

import pytest
from edgeprune_device.errors import InputError
from PIL import Image

from edgeprune import workers
from edgeprune.data import dataset
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.measuring import accuracy, timing
from edgeprune.measuring.sessions import OnnxSession, ReferenceSession, TorchSession
from edgeprune.model import checkpoint

from ... import networks
from ..small import short


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg")
    return tmp_path / "a.jpg"


@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: p.write_bytes(b"junk")])
def test_missing_or_damaged_image_is_named(picture, spoil):
    spoil(picture)
    with pytest.raises(InputError, match=r"a\.jpg: .*image"):
        dataset.Dataset(picture, ("a",), (), (picture,)).shape(picture)
    model = to_onnx(short(), (64, 64)).SerializeToString()
    with pytest.raises(InputError, match=r"a\.jpg: .*image"):
        timing.time_models({"a": model}, [picture], classes=3, rounds=1, warmup=0)


@pytest.mark.parametrize("kind", ["torch", "onnx", "reference"])
def test_accuracy_does_not_depend_on_the_number_of_processes(kind, tmp_path, monkeypatch):
    """Bit for bit: the same detections, matches and mAP from one process, two and three, of one thread each."""
    model = checkpoint.load(networks.path("yolov8")).model
    data = dataset.load(networks.scenes(tmp_path, train=1, val=9))
    open_session = {
        "torch": lambda: TorchSession(model, networks.SIZE),
        "onnx": lambda: OnnxSession(to_onnx(model, (networks.SIZE, networks.SIZE))),
        "reference": lambda: ReferenceSession(to_onnx(model, (networks.SIZE, networks.SIZE))),
    }[kind]
    results = []
    for count in (1, 2, 3):
        monkeypatch.setattr(workers, "_affordable", lambda count=count: count)
        shown, done = [], []
        measured, _ = accuracy.evaluate(open_session(), data, data.val, networks.SIZE, done.append, shown)
        results.append((measured, [rows.tobytes() for rows in shown]))
        assert done == list(range(1, 10))
    assert results[0][0].map50_95 > 0.5
    assert results[0] == results[1] == results[2]


def test_interval_contains_the_figure_and_narrows_with_more_images(tmp_path):
    model = checkpoint.load(networks.path("yolov8")).model
    data = dataset.load(networks.scenes(tmp_path, train=1, val=24))
    session = TorchSession(model, networks.SIZE)
    widths = []
    for pictures in (data.val, data.val * 4):  # a set four times as large: half the width
        measured, matches = accuracy.evaluate(session, data, pictures, networks.SIZE)
        low, high = accuracy.interval(matches, samples=200)
        assert 0 < low <= measured.map50_95 <= high <= 1
        assert accuracy.interval(matches, samples=200) == (low, high)
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.25)


def test_batches_give_the_accuracy_of_single_images(tmp_path):
    """As on a GPU: decoding and judging in threads, several images in one inference, the last batch smaller."""
    model = checkpoint.load(networks.path("yolov8")).model
    data = dataset.load(networks.scenes(tmp_path, train=1, val=11))
    results = []
    for batch in (1, 4):
        session, shown, done = TorchSession(model, networks.SIZE), [], []
        session.batch = batch
        measured, _ = accuracy.evaluate(session, data, data.val, networks.SIZE, done.append, shown)
        results.append((measured.map50_95, shown))
        assert done == list(range(1, 12))
    assert results[0][0] > 0.5
    assert results[1][0] == pytest.approx(results[0][0], abs=1e-4)
    for single, batched in zip(results[0][1], results[1][1], strict=True):
        assert single == pytest.approx(batched, abs=0.05)
