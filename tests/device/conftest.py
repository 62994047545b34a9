"""Fixtures of the device tests: a temporary home, a tiny handmade ONNX model, and a bundle with it."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Make the folder `fakes` importable, also if pytest does not change sys.path (--import-mode=importlib).
sys.path.append(str(Path(__file__).parent))
from fakes.models import field, message, tensor, value_info

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SIZE = 64  # px; the tiny model's input
ANCHORS = 84  # 8*8 + 4*4 + 2*2 positions of a 64 px input


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Temporary keys, trust and spool for this test."""
    folder = tmp_path / "edgeprune-home"
    monkeypatch.setenv("EDGEPRUNE_HOME", str(folder))
    monkeypatch.setenv("EDGEPRUNE_SPOOL", str(tmp_path / "spool"))
    return folder


@pytest.fixture
def shared_data():
    """The real images and weights beside the repository; the test is skipped without them."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data")
    return SHARED


@pytest.fixture(scope="session")
def cudart_build(tmp_path_factory):
    """The fake libcudart, compiled once."""
    from fakes.cudart import compile_cudart

    return compile_cudart(tmp_path_factory.mktemp("cudart"))


@pytest.fixture
def fake_cudart(cudart_build, tmp_path, monkeypatch):
    """A fake libcudart for this test, which `edgeprune_device.cuda.open("ctypes")` uses."""
    from fakes.cudart import FakeCudart

    shutil.copytree(str(cudart_build.parent), str(tmp_path / "cudart"), symlinks=True)
    library = tmp_path / "cudart" / cudart_build.name
    monkeypatch.setenv("EDGEPRUNE_LIBCUDART", str(library))
    fake = FakeCudart(library)
    yield fake
    fake.check()


@pytest.fixture
def fake_tensorrt(fake_cudart, tmp_path, monkeypatch):
    """use(release) -> the fake module, which this process and its children then import as TensorRT."""
    from fakes import fake_tensorrt as fake

    def use(release):
        name = "tensorrt_rtx" if release == fake.RTX else "tensorrt"
        monkeypatch.setenv("FAKE_TENSORRT", release)
        monkeypatch.setitem(sys.modules, name, fake.module(release))
        return sys.modules[name]

    monkeypatch.setattr(fake, "cudart", fake_cudart)
    monkeypatch.setenv("PYTHONPATH", str(fake.HERE / "modules"))
    monkeypatch.setenv("EDGEPRUNE_ENGINES", str(tmp_path / "engines"))
    monkeypatch.setenv("FAKE_TENSORRT_LOG", str(tmp_path / "builds.jsonl"))
    return use


@pytest.fixture
def builds(tmp_path):
    """The list of settings with which the fake builder has built engines, in any process."""
    path = tmp_path / "builds.jsonl"
    return lambda: [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def make_onnx(boxes, classes=2):
    """ONNX bytes of a "detector" that always finds `boxes` [(cx, cy, w, h, class)], px; brighter images score higher.

    output = constant + gain * mean(input): the score of each box is 0.9 times the image's mean brightness.
    """
    constant, gain = (np.zeros((1, 4 + classes, ANCHORS), np.float32) for _ in range(2))
    for i, (cx, cy, w, h, c) in enumerate(boxes):
        constant[0, :4, i] = cx, cy, w, h
        gain[0, 4 + c, i] = 0.9
    keep = message((1, "keepdims"), (3, 0), (20, 2))
    nodes = [
        message((1, "images"), (2, "mean"), (4, "ReduceMean"), (5, keep)),
        message((1, "mean"), (1, "gain"), (2, "scores"), (4, "Mul")),
        message((1, "scores"), (1, "constant"), (2, "output0"), (4, "Add")),
    ]
    graph = b"".join(field(1, node) for node in nodes) + message(
        (2, "tiny"),
        (5, tensor("gain", gain)),
        (5, tensor("constant", constant)),
        (11, value_info("images", (1, 3, SIZE, SIZE))),
        (12, value_info("output0", (1, 4 + classes, ANCHORS))),
    )
    return message((1, 8), (7, graph), (8, message((1, ""), (2, 13))))


BOXES = [(20, 20, 16, 16, 0), (44, 40, 12, 20, 1)]


@pytest.fixture
def tiny_onnx():
    return make_onnx(BOXES)


def png(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def labelled_pictures():
    """Three whitish 64 x 64 images whose truth is the output of the tiny model."""
    truth = np.array([[c, cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2] for cx, cy, w, h, c in BOXES])
    return [(f"p{i}.png", png(np.full((SIZE, SIZE, 3), 255 - 20 * i, np.uint8)), truth) for i in range(3)]


@pytest.fixture
def manifest():
    """A manifest as `build` writes it, without payloads."""
    return {
        "name": "tiny",
        "created": "2026-11-22T23:40:00Z",
        "edgeprune_version": "0.1.0",
        "target": "cpu",
        "task": "detect",
        "classes": ["person", "car"],
        "imgsz": [SIZE, SIZE],
        "letterbox": {"pad": 114, "stride": 32},
        "nms": {"conf": 0.25, "iou": 0.7, "max_det": 300},
        "output": "raw",
        "models": {
            "fp32": {"payload": "model.fp32.onnx", "opset": 13, "map50": 1.0, "map50_95": 1.0, "small_map50_95": 1.0},
            "int8": {"payload": None, "reason": "the accuracy gate failed"},
        },
        "engines": {"fp16": {"payload": None, "reason": "the device builds its own"}},
        "evaluation": {"payload": "evaluation.zip", "pictures": 3, "boxes": 6},
        "lineage": {"ratio": 0.2},
    }


@pytest.fixture
def bundle(tmp_path, manifest, tiny_onnx, labelled_pictures):
    """A signed bundle with the tiny model and its images."""
    from edgeprune_device.trust import keys
    from edgeprune_device.trust.bundle import Bundle
    from edgeprune_device.vision.evaluation import EvaluationSet

    payloads = {"model.fp32.onnx": tiny_onnx, "evaluation.zip": EvaluationSet.pack(labelled_pictures)}
    return Bundle.write(tmp_path / "tiny.epb", manifest, payloads, keys.load_or_create())


PRECISIONS = ("fp32", "fp16", "int8", "int8-fp16")


@pytest.fixture
def gpu_bundle(tmp_path, manifest, labelled_pictures):
    """make(precisions): a bundle for a Jetson with these files."""
    from edgeprune_device.trust import keys
    from edgeprune_device.trust.bundle import Bundle
    from edgeprune_device.vision.evaluation import EvaluationSet
    from fakes import models

    def make(precisions=PRECISIONS, target="jetson-orin"):
        entries = {p: {"payload": f"model.{p}.onnx", "fp32_nodes": [models.TAIL]} for p in precisions}
        payloads = {f"model.{p}.onnx": models.detector(p) for p in precisions}
        payloads["evaluation.zip"] = EvaluationSet.pack(labelled_pictures)
        parts = {**manifest, "target": target, "models": entries}
        return Bundle.write(tmp_path / "gpu.epb", parts, payloads, keys.load_or_create())

    return make


@pytest.fixture
def variant_bundle(tmp_path, manifest, labelled_pictures):
    """A bundle with one model, a device variant."""
    from edgeprune_device.trust import keys
    from edgeprune_device.trust.bundle import Bundle
    from edgeprune_device.vision.evaluation import EvaluationSet
    from fakes import models

    name = "model.fp32.device.onnx"
    formats = {"models": {"fp32": {"payload": name}}, "layout": "uint8-nhwc", "output": "best"}
    payloads = {name: models.variant(), "evaluation.zip": EvaluationSet.pack(labelled_pictures)}
    return Bundle.write(tmp_path / "v.epb", {**manifest, **formats}, payloads, keys.load_or_create())
