"""The real parser and builder of TensorRT for RTX accept every file of every family, and so does our graph check.

TensorRT for RTX builds ahead of time: this proves parsing and type checking for SM86 and SM120, not fusion on a Jetson.
"""

import numpy as np
import onnx
import pytest

from edgeprune import demo
from edgeprune import quantize as q
from edgeprune.exporting import tensorrt
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.model import checkpoint, head

from ..small import network

pytestmark = pytest.mark.skipif(tensorrt.available() is not None, reason=str(tensorrt.available()))
SIZE = 96


def real(name):
    def load(request):
        return checkpoint.load(request.getfixturevalue("shared") / "weights" / name).model

    return load


def rows(model):
    """The model with its one-to-one head, whose TopK only this head has."""
    head.select(model, head.ONE_TO_ONE)
    return model


MODELS = {
    "v8n": lambda request: network("yolov8n.yaml"),
    "11n": lambda request: network("yolo11n.yaml"),
    "26n": lambda request: rows(network("yolo26n.yaml")),
    "demo": lambda request: checkpoint.load(demo.WEIGHTS).model,
    "hituav": real("yolov8n-hituav-best.pt"),
    "coco": real("yolov8n-coco-rebuilt.pt"),
}
#: The demo is also a YOLOv8n, with other weights; 26n has all operators of 11n.
SLOW = ("v8n", "11n", "hituav", "coco")
#: Builds for another GPU differ little between families, so 26n is built for one only.
COMPUTES = {"26n": ("SM86",)}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in MODELS])
def test_every_precision_is_parsed_and_built(name, request, tmp_path):
    fp32 = to_onnx(MODELS[name](request), (SIZE, SIZE))
    rng = np.random.default_rng(0)
    ranges = q.calibrate(fp32, [rng.random((1, 3, SIZE, SIZE), dtype=np.float32) for _ in range(2)])
    fallback = q.to_int8(fp32, ranges, exclude=["model.2.cv1.conv", "model.4"])
    files = {
        "fp32": fp32,
        "fp16": q.to_fp16(fp32, ranges).model,
        "int8": q.to_int8(fp32, ranges),
        "int8-fp16": q.to_int8(fp32, ranges, rest="fp16"),
        "fallback": fallback,
        "fallback-fp16": q.to_int8(fp32, ranges, rest="fp16", exclude=["model.2.cv1.conv", "model.4"]),
    }
    for label in files:
        if "int8" in label or "fallback" in label:
            q.check(files[label])
    assert 0.5 < q.int8_share(fallback) < q.int8_share(files["int8"])
    for label, model in files.items():
        path = tmp_path / f"{label}.onnx"
        onnx.save(model, path)
        for compute in COMPUTES.get(name, ("SM86", "SM120")):
            built = tensorrt.build(path, compute)
            assert built.reason is None and built.compute == compute and built.size_bytes > 1_000_000, label
