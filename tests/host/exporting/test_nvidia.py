"""NVIDIA's real parser and builder take every file of every family, and so does our own check of the graph.

TensorRT for RTX, ahead of time: it proves parsing and typing for SM86 and SM120, not what a Jetson fuses.
"""

import numpy as np
import onnx
import pytest

from edgeprune import demo
from edgeprune import quantize as q
from edgeprune.exporting import tensorrt
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.model import checkpoint

from ..small import network

pytestmark = pytest.mark.skipif(tensorrt.available() is not None, reason=str(tensorrt.available()))
SIZE = 96


def real(name):
    def load(request):
        return checkpoint.load(request.getfixturevalue("shared") / "weights" / name).model

    return load


MODELS = {
    "v8n": lambda request: network("yolov8n.yaml"),
    "11n": lambda request: network("yolo11n.yaml"),
    "26n": lambda request: network("yolo26n.yaml"),
    "demo": lambda request: checkpoint.load(demo.WEIGHTS).model,
    "hituav": real("yolov8n-hituav-best.pt"),
    "coco": real("yolov8n-coco-rebuilt.pt"),
}
#: The demo is a YOLOv8n too: only the weights differ; 26n has all that 11n has.
SLOW = ("v8n", "11n", "hituav", "coco")
#: What a builder makes for another GPU differs little from family to family.
COMPUTES = {"26n": ("SM86",)}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in MODELS])
def test_every_precision_is_parsed_and_built(name, request, tmp_path):
    fp32 = to_onnx(MODELS[name](request), (SIZE, SIZE))
    rng = np.random.default_rng(0)
    ranges = q.calibrate(fp32, [rng.random((1, 3, SIZE, SIZE), dtype=np.float32) for _ in range(2)])
    rescued = q.to_int8(fp32, ranges, exclude=["model.2.cv1.conv", "model.4"])
    files = {
        "fp32": fp32,
        "fp16": q.to_fp16(fp32, ranges).model,
        "int8": q.to_int8(fp32, ranges),
        "int8-fp16": q.to_int8(fp32, ranges, rest="fp16"),
        "rescued": rescued,
        "rescued-fp16": q.to_int8(fp32, ranges, rest="fp16", exclude=["model.2.cv1.conv", "model.4"]),
    }
    for label in files:
        if "int8" in label or "rescued" in label:
            q.check(files[label])
    assert 0.5 < q.int8_share(rescued) < q.int8_share(files["int8"])
    for label, model in files.items():
        path = tmp_path / f"{label}.onnx"
        onnx.save(model, path)
        for compute in COMPUTES.get(name, ("SM86", "SM120")):
            built = tensorrt.build(path, compute)
            assert built.reason is None and built.compute == compute and built.size_bytes > 1_000_000, label
