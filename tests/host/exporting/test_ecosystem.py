"""The ONNX files in other tools: stock Ultralytics detects the same boxes, and viewers show the layers."""

import re

import numpy as np
import onnx
import pytest
from edgeprune_device.engine.layers import layer_of_node
from edgeprune_device.output import END2END
from edgeprune_device.vision import preprocess
from edgeprune_device.vision.detect import detections
from PIL import Image

from edgeprune.exporting import nms
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.model import checkpoint, head
from edgeprune.quantize import calibrate, to_fp16, to_int8

from ..small import network, save

SIZE = 96
#: INT8 with FP16 is for TensorRT; ONNX Runtime's CPU kernels refuse some of these graphs.
TENSORRT = "int8-fp16"


def files(model, pictures):
    """Every kind of file that `build` writes, by name."""
    fp32 = to_onnx(model, (SIZE, SIZE))
    ranges = calibrate(fp32, pictures)
    made = {
        "fp32": fp32,
        "fp16": to_fp16(fp32, ranges).model,
        "int8": to_int8(fp32, ranges),
        "int8-cpu": to_int8(fp32, ranges, activations="unsigned"),
        "int8-fp16": to_int8(fp32, ranges, rest="fp16"),
    }
    if not head.is_end2end(model):
        made.update({"nms": nms.add(fp32), "fp16-nms": nms.add(made["fp16"])})
    return made


def picture(seed, height=70, width=110):
    """Coloured rectangles on noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    for _ in range(6):
        x, y = rng.integers(0, width - 30), rng.integers(0, height - 30)
        pixels[y : y + rng.integers(10, 30), x : x + rng.integers(10, 30)] = rng.integers(0, 255, 3)
    return pixels


@pytest.fixture(
    scope="module",
    params=[("yolov8n", None), ("yolo26n", None), ("yolo26n", head.ONE_TO_ONE)],
    ids=lambda p: "-".join(filter(None, p)),
)
def exported(request, tmp_path_factory):
    """(checkpoint, {kind: file}) of a small network of the family and with the head; None: the default head."""
    family, which = request.param
    folder = tmp_path_factory.mktemp(family)
    model = network(f"{family}.yaml", width=0.125)
    head.select(model, which)
    weights = save(model, folder / "tuned.pt", imgsz=SIZE)
    model = checkpoint.load(weights).model
    pictures = [preprocess.letterbox(picture(seed), SIZE)[0] for seed in range(4)]
    paths = {}
    for kind, made in files(model, pictures).items():
        paths[kind] = folder / f"model.{kind}.onnx"
        onnx.save(made, str(paths[kind]))
    return weights, paths


def test_nodes_are_named_after_the_models_layers(exported):
    weights, paths = exported
    layers = {name for name, _ in checkpoint.load(weights).model.named_modules(remove_duplicate=False)}
    for kind, path in paths.items():
        graph = onnx.load(str(path)).graph
        names = [node.name for node in graph.node]
        assert len(set(names)) == len(names), kind
        for name in names:
            layer = re.sub(r"_\d+$", "", layer_of_node(name))  # PyTorch numbers the calls of a layer: m, m_1, m_2
            assert name.startswith("/") and (layer in layers or layer in ("images", "nms")), (kind, name)
        assert next(n.name for n in graph.node if n.op_type == "Conv") == "/model.0/conv/Conv"
        tensors = [*(t.name for t in graph.initializer), *(o for n in graph.node for o in n.output)]
        assert [t for t in tensors if re.search(r"onnx::|^_v_|^\d+$|^val_", t)] == []
        assert not any(n.op_type == "Constant" for n in graph.node)


def test_every_file_is_valid_and_every_tensor_has_a_type_and_a_shape(exported):
    for kind, path in exported[1].items():
        model = onnx.load(str(path))
        onnx.checker.check_model(model, full_check=True)
        known = {v.name: v.type.tensor_type for v in (*model.graph.value_info, *model.graph.output)}
        for name in (o for node in model.graph.node for o in node.output):
            assert known[name].elem_type and all(d.dim_value for d in known[name].shape.dim), (kind, name)
        assert not any(entry.key.startswith("onnxsim") for entry in model.metadata_props)


def unlike(actual, expected):
    """The largest distance, (pixels, score), from an expected box to the nearest box of its class."""
    worst = np.zeros(2)
    for row in expected:
        others = actual[actual[:, 5] == row[5]]
        apart = np.stack([np.abs(others[:, :4] - row[:4]).max(1), np.abs(others[:, 4] - row[4])], axis=1)
        worst = np.maximum(worst, apart[apart.sum(1).argmin()])
    return worst


def test_stock_ultralytics_reads_the_metadata_and_detects_the_same_boxes(exported):
    """The expected boxes are those of our decoding; for FP32 also those of the checkpoint in stock Ultralytics."""
    import onnxruntime
    from ultralytics import YOLO

    weights, paths = exported
    image = picture(7)
    bgr = np.ascontiguousarray(image[..., ::-1])
    x, box = preprocess.letterbox(image, SIZE)
    for kind in paths.keys() - {TENSORRT}:
        yolo = YOLO(str(paths[kind]))
        theirs = yolo.predict(bgr, conf=0.05, iou=0.7, verbose=False)[0].boxes.data.numpy()
        session = onnxruntime.InferenceSession(str(paths[kind]), providers=["CPUExecutionProvider"])
        raw = session.run(None, {"images": x})
        backend = yolo.predictor.model
        assert yolo.task == "detect" and backend.names == {0: "thing0", 1: "thing1", 2: "thing2"}
        assert (backend.stride, list(backend.imgsz), backend.batch, backend.channels) == (32, [SIZE, SIZE], 1, 3)
        stated = head.output_of_file(onnx.load(paths[kind]))
        assert backend.end2end == (stated == END2END)
        ours = box.undo(detections(raw, stated, classes=3, conf=0.05, iou=0.7))
        assert len(theirs) == len(ours) > 5, kind
        assert (unlike(theirs, ours) <= (0.02, 1e-4)).all() and (unlike(ours, theirs) <= (0.02, 1e-4)).all(), kind
        if kind in ("fp32", "nms"):
            # Stock Ultralytics asks for the one-to-one head in this way.
            one = {"nms": False} if head.is_end2end(checkpoint.load(weights).model) else {}
            stock = YOLO(weights).predict(bgr, imgsz=SIZE, rect=False, conf=0.05, iou=0.7, verbose=False, **one)[0]
            stock = stock.boxes.data.numpy()
            assert len(stock) == len(theirs)
            assert (unlike(theirs, stock) <= (0.05, 1e-3)).all() and (unlike(stock, theirs) <= (0.05, 1e-3)).all()


def test_files_of_a_trained_network_detect_the_same_boxes(shared, tmp_path):
    """YOLOv8n COCO on a street scene: in stock Ultralytics, the files give the checkpoint's boxes."""
    from ultralytics import YOLO

    weights = shared / "weights" / "yolov8n-coco-rebuilt.pt"
    photo = sorted((shared / "coco8/images/val").iterdir())[0]
    model = checkpoint.load(weights).model
    pixels = preprocess.letterbox(np.asarray(Image.open(photo).convert("RGB")), 320)[0]
    fp32 = to_onnx(model, (320, 320))
    made = {"fp32": fp32, "fp16": to_fp16(fp32, calibrate(fp32, [pixels])).model, "nms": nms.add(fp32)}
    expected = YOLO(weights).predict(photo, imgsz=320, rect=False, verbose=False)[0]
    assert len(expected.boxes) > 0
    for kind, limit in (("fp32", (0.05, 1e-3)), ("nms", (0.05, 1e-3)), ("fp16", (2.0, 0.02))):
        onnx.save(made[kind], str(tmp_path / f"{kind}.onnx"))
        predicted = YOLO(tmp_path / f"{kind}.onnx").predict(photo, verbose=False)[0]
        assert predicted.names == expected.names and len(predicted.boxes) == len(expected.boxes)
        assert (unlike(predicted.boxes.data.numpy(), expected.boxes.data.numpy()) <= limit).all()
