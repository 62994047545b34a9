"""The device variant of a file: its detections equal those of the stock file, and NVIDIA's builder accepts it."""

import numpy as np
import onnx
import onnxruntime
import pytest
import ultralytics
from edgeprune_device.errors import GateError, InputError
from edgeprune_device.layouts import FLOAT32_NCHW, UINT8_NHWC
from edgeprune_device.output import BEST, END2END, MAX_ROWS, RAW
from edgeprune_device.target import Target
from edgeprune_device.vision import preprocess, tasks

import edgeprune as ep
from edgeprune import quantize as q
from edgeprune.exporting import device_variant, nms, tensorrt
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.measuring import accuracy
from edgeprune.measuring.sessions import OnnxSession, ReferenceSession, TorchSession
from edgeprune.model import checkpoint, head

from ... import networks
from .. import oriented
from ..small import dataset, label_by, save, short

#: Rectangles with more anchors than the best ones, at the strides of each network: 1,260 and 400.
SIZE, OBB_SIZE = (160, 384), (256, 320)


def detector(family):
    model = checkpoint.load(networks.path(family)).model
    head.select(model, head.ONE_TO_ONE if family in networks.ONE_TO_ONE else None)
    return to_onnx(model, SIZE)


STOCK = {
    "detect": lambda: detector("yolov8"),
    "detect-rows": lambda: detector("yolo26"),
    "obb": lambda: to_onnx(oriented.network("yolov8"), OBB_SIZE, metadata={"task": "obb"}),
    "obb-rows": lambda: to_onnx(oriented.network("yolo26"), OBB_SIZE, metadata={"task": "obb"}),
}
CLASSES = 3


@pytest.fixture(scope="module", params=STOCK)
def stock(request):
    return STOCK[request.param]()


@pytest.fixture(scope="module")
def raw_stock():
    return detector("yolov8")


@pytest.fixture(scope="module")
def pictures():
    return [np.asarray(networks.scene(np.random.default_rng([7, i]))[0]) for i in range(6)]


def size_of(model):
    return tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)[2:]


def outputs(session, picture, size):
    return session.infer(preprocess.letterbox(picture, size, session.layout)[0])


def found(session, picture, size, task, **how):
    return task.detections(outputs(session, picture, size), session.kind, classes=CLASSES, **how)


def test_fp32_detections_equal_those_of_the_stock_file_to_the_last_bit(stock, pictures):
    task, size = tasks.get(head.task_of_file(stock)), size_of(stock)
    before, after = OnnxSession(stock), OnnxSession(device_variant.of(stock))
    assert (before.layout, after.layout) == (FLOAT32_NCHW, UINT8_NHWC)
    assert (before.kind, after.kind) in ((RAW, BEST), (END2END, END2END))
    complete = []
    for picture in pictures:
        results = outputs(after, picture, size)
        assert np.array_equal(results[-1], outputs(before, picture, size)[0])
        for how in ({"conf": 0.25}, {"conf": 0.001, "multi_label": True}, {"conf": 0.0, "multi_label": True}):
            a, b = (found(session, picture, size, task, **how) for session in (before, after))
            assert np.array_equal(a, b)
            if after.kind == BEST:
                rest = task.narrowed(results, CLASSES, how["conf"])[0]
                complete.append(rest.shape[2] <= MAX_ROWS)
                assert complete[-1] == ((results[2][0, 4 : 4 + CLASSES].max(0) > how["conf"]).sum() <= MAX_ROWS)
        assert len(found(after, picture, size, task, conf=0.001))
    assert after.kind == END2END or {True, False} == set(complete)  # both ways were taken


def precisions_of(model):
    rng = np.random.default_rng(0)
    ranges = q.calibrate(model, [rng.random((1, 3, *size_of(model)), dtype=np.float32) for _ in range(2)])
    return {
        "fp32": model,
        "fp16": q.to_fp16(model, ranges).model,
        "int8": q.to_int8(model, ranges),
        "int8-fp16": q.to_int8(model, ranges, rest="fp16"),
    }


@pytest.fixture(scope="module")
def files(stock):
    return precisions_of(stock)


def test_reduced_precisions_as_written_equal_the_stock_files(files, pictures):
    size = size_of(files["fp32"])
    for precision, model in files.items():
        before, after = ReferenceSession(model), ReferenceSession(device_variant.of(model))
        for picture in pictures[:2]:
            a, b = outputs(before, picture, size)[0], outputs(after, picture, size)[-1]
            assert np.array_equal(a, b), precision


@pytest.mark.skipif(tensorrt.available() is not None, reason=str(tensorrt.available()))
def test_nvidias_builder_accepts_every_precision_and_head(files, tmp_path):
    for precision, model in files.items():
        onnx.save(device_variant.of(model), tmp_path / "m.onnx")
        built = tensorrt.build(tmp_path / "m.onnx", precision=precision)
        assert built.reason is None and built.size_bytes > 100_000, precision


@pytest.mark.skipif(tensorrt.available() is not None, reason=str(tensorrt.available()))
def test_nvidias_builder_limits_the_number_of_the_best(tmp_path, monkeypatch):
    model = to_onnx(checkpoint.load(networks.path("yolov8")).model, (512, 512))  # 5,376 anchors
    monkeypatch.setattr(device_variant, "MAX_ROWS", 3841)
    onnx.save(device_variant.of(model), tmp_path / "m.onnx")
    with pytest.raises(GateError, match=r"K exceeds the maximum value allowed \(3840\)"):
        tensorrt.build(tmp_path / "m.onnx")


def test_file_states_its_formats_and_the_stock_file_is_unchanged(raw_stock):
    before = raw_stock.SerializeToString()
    variant = device_variant.of(raw_stock)
    assert raw_stock.SerializeToString() == before
    assert head.output_of_file(variant) == BEST and head.layout_of_file(variant) == UINT8_NHWC
    session = onnxruntime.InferenceSession(variant.SerializeToString(), providers=["CPUExecutionProvider"])
    (pixels,) = session.get_inputs()
    assert (pixels.name, pixels.type, pixels.shape) == ("images", "tensor(uint8)", [1, *SIZE, 3])
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("best", "tensor(float)", [1, 7, MAX_ROWS]),
        ("anchors", "tensor(int32)", [1, MAX_ROWS]),
        ("raw", "tensor(float)", [1, 7, 1260]),
    ]
    assert device_variant.fp32_nodes(variant) == ["/device/scores", "/device/highest", "/device/top", "/device/best"]
    assert not device_variant.fp32_nodes(raw_stock)


def test_contradiction_between_metadata_and_input_is_refused(raw_stock):
    variant = device_variant.of(raw_stock)
    with pytest.raises(InputError, match=r"wrong input for its layout, float32-nchw \(found UINT8"):
        head.layout_of_file(variant, FLOAT32_NCHW)
    with pytest.raises(InputError, match=r"wrong input for its layout, uint8-nhwc \(found FLOAT"):
        head.layout_of_file(raw_stock, UINT8_NHWC)
    session = OnnxSession(variant)
    with pytest.raises(InputError, match=r"input: wrong shape"):
        session.infer(np.zeros((1, 3, *SIZE), np.float32))
    with pytest.raises(InputError, match=r"input: wrong type \(found float32, expected uint8\)"):
        session.infer(np.zeros((1, *SIZE, 3), np.float32))


def test_raw_output_that_is_small_stays_as_it_is(pictures):
    stock = to_onnx(checkpoint.load(networks.path("yolov8")).model, (96, 96))  # 189 anchors
    before, after = OnnxSession(stock), OnnxSession(device_variant.of(stock))
    assert (after.kind, after.layout) == (RAW, UINT8_NHWC)
    (a,), (b,) = (outputs(session, pictures[0], (96, 96)) for session in (before, after))
    assert np.array_equal(a, b)


def test_nms_in_the_file_keeps_its_rows(raw_stock, pictures):
    stock = nms.add(raw_stock)
    before, after = OnnxSession(stock), OnnxSession(device_variant.of(stock))
    assert (after.kind, after.layout) == (END2END, UINT8_NHWC)
    for picture in pictures[:2]:
        (a,), (b,) = (outputs(session, picture, SIZE) for session in (before, after))
        assert np.array_equal(a, b)


@pytest.mark.parametrize(
    "asked, target, flies",
    [("auto", "jetson-orin", True), ("auto", "rtx", True), ("auto", "cpu", False), ("uint8", "cpu", True),
     ("float32", "jetson-orin", False)],
)  # fmt: skip
def test_variant_flies_on_gpus_unless_asked_otherwise(asked, target, flies):
    assert device_variant.flies(asked, Target.load(target)) == flies


def test_export_judges_and_compare_measures_the_variants(tmp_path, monkeypatch):
    """The sessions of the gates take pixels and give the best anchors; the stock file opens in stock Ultralytics."""
    size = (256, 320)  # 400 anchors
    data = dataset(tmp_path / "data", train=16, val=4, seed=1, size=size)
    model = short()
    save(model, tmp_path / "best.pt")
    label_by(TorchSession(model, size), tmp_path / "data", size)
    judged = []

    def evaluate(session, *more, **options):
        judged.append((session.layout, session.kind))
        return accuracy.evaluate(session, *more, **options)

    monkeypatch.setattr("edgeprune.api.export.evaluate", evaluate)
    options = {"imgsz": size, "precision": ("fp32", "fp16"), "max_drop": 1.0, "quiet": True}
    exported = ep.export(tmp_path / "best.pt", data, target="jetson-orin", out=tmp_path / "gpu", **options)
    assert judged == [(UINT8_NHWC, BEST)] * 2
    assert {p.name for p in exported.variants.values()} == {"model.fp32.device.onnx", "model.fp16.device.onnx"}
    assert "device variant: " in str(exported)
    assert set(device_variant.fp32_nodes(onnx.load(exported.variants["fp16"]))) <= set(
        exported.details["fp16"]["fp32_nodes"]
    )
    stock, variant = (ep.compare(files["fp32"], data=data, quiet=True).items[0]
                      for files in (exported.files, exported.variants))  # fmt: skip
    assert stock.map50_95 == variant.map50_95 == exported.accuracy["fp32"].map50_95 > 0.3
    assert stock.imgsz == variant.imgsz and variant.stages_ms.keys() == {"decode", "pre", "infer", "post"}
    assert ultralytics.YOLO(exported.files["fp32"], task="detect").predict(
        np.zeros((*size, 3), np.uint8), imgsz=size, device="cpu", verbose=False
    )

    judged.clear()
    exported = ep.export(tmp_path / "best.pt", data, target="jetson-orin", input="float32", out=tmp_path / "stock",
                         **options)  # fmt: skip
    assert judged == [(FLOAT32_NCHW, RAW)] * 2 and not exported.variants
    assert not list((tmp_path / "stock").glob("*.device.onnx"))
