"""The files for target cpu on OpenVINO: the same detections as on ONNX Runtime, within rounding."""

import numpy as np
import pytest
from edgeprune_device import options, runtimes
from edgeprune_device.machine.environment import Environment
from edgeprune_device.vision import evaluation, preprocess
from edgeprune_device.vision.detect import detections
from edgeprune_device.vision.evaluation import EvaluationImage, EvaluationSet

from edgeprune.data import dataset
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.model import checkpoint, head
from edgeprune.quantize import calibrate, to_int8

from ... import networks

pytestmark = pytest.mark.skipif(
    runtimes.available()["openvino"] is not None, reason="needs openvino: pip install openvino"
)
ONE = runtimes.RuntimeSettings(threads=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset.load(networks.scenes(tmp_path_factory.mktemp("scenes") / "data", train=12, val=48))


@pytest.fixture(scope="module", params=["yolov8", "yolo26"])
def files(request, data):
    """{"fp32", "int8"}: the files of a trained network as `--target cpu` writes them, and the output's meaning."""
    model, end2end = checkpoint.load(networks.path(request.param)).model, request.param in networks.ONE_TO_ONE
    fp32 = to_onnx(model, (networks.SIZE, networks.SIZE), end2end=end2end)
    inputs = [preprocess.letterbox(preprocess.decode(path), networks.SIZE)[0] for path in data.train]
    narrow = Environment.read().saturates
    int8 = to_int8(fp32, calibrate(fp32, inputs), activations="unsigned", reduce_range=narrow)
    made = {"fp32": fp32.SerializeToString(), "int8": int8.SerializeToString()}
    return made, head.output_of_file(fp32)


@pytest.fixture(scope="module")
def images(data):
    read = [(path, path.read_bytes()) for path in data.val]
    shape = (networks.HEIGHT, networks.WIDTH)
    return EvaluationSet(tuple(EvaluationImage(p.name, content, data.truth(p, shape)) for p, content in read))


def accuracy(runtime, model, kind, images):
    with runtimes.open(model, runtime, ONE) as session:
        result, _ = evaluation.evaluate(session, images, imgsz=networks.SIZE, classes=networks.NAMES, kind=kind)
    return result.map50_95


def found(runtime, model, kind, x):
    with runtimes.open(model, runtime, ONE) as session:
        return detections(session.infer(x), kind, classes=len(networks.NAMES), conf=0.05)


def test_fp32_computes_the_same(files, images):
    (made, kind), x = files, preprocess.letterbox(preprocess.decode(images.pictures[0].data), networks.SIZE)[0]
    on_ort, on_openvino = (found(runtime, made["fp32"], kind, x) for runtime in ("ort", "openvino"))
    assert len(on_ort) and on_ort.shape == on_openvino.shape
    assert np.allclose(on_ort, on_openvino, rtol=0, atol=0.005)  # px, and scores
    on_ort, on_openvino = (accuracy(runtime, made["fp32"], kind, images) for runtime in ("ort", "openvino"))
    assert on_ort > 0.5 and on_openvino == pytest.approx(on_ort, abs=1e-4)


def test_int8_stays_within_the_gate(files, images):
    made, kind = files
    on_ort, on_openvino = (accuracy(runtime, made["int8"], kind, images) for runtime in ("ort", "openvino"))
    assert on_ort > 0.5 and abs(on_openvino - on_ort) <= options.INSTALL_MAX_DROP.default
