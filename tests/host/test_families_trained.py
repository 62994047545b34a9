"""Every family's trained network through the whole chain: pruned, compared, exported, quantized, packed, benchmarked.

What random weights cannot tell: that each step judges the head that is delivered, and keeps what it detects. The
networks: tests/networks.
"""

import functools

import pytest
import torch
from edgeprune_device import accuracy, benchmark, vision

import edgeprune as ep
from edgeprune import checkpoint, dataset, measure, pack

from .. import networks

#: The share of its mAP that a network keeps at 80 % of its MACs, before any fine-tuning.
KEPT = 0.5
#: What a reduced precision may lose, mAP50-95.
INT8_DROP = 0.03
FIGURES = ("map50", "map50_95", "small_map50_95")
#: Between two ways to run the same network: rounding alone.
SAME = 0.005


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return networks.scenes(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture(scope="module")
def pictures(data):
    return dataset.load(data)


@pytest.fixture(scope="module", params=networks.FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def original(family, pictures):
    """Its mAP50-95 in PyTorch."""
    return in_torch(networks.path(family), pictures)


@pytest.fixture(scope="module")
def pruned(family, data, tmp_path_factory):
    result = ep.prune(networks.path(family), macs=0.8, data=data, quiet=True)
    return result, result.save(tmp_path_factory.mktemp(family) / "pruned.pt")


@pytest.fixture(scope="module")
def exported(family, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"{family}-onnx")
    return ep.export(networks.path(family), data, out=folder, max_drop=INT8_DROP, quiet=True)


def in_torch(path, pictures):
    session = measure.TorchSession(checkpoint.load(path).model)
    return measure.evaluate(session, pictures, pictures.val, networks.SIZE)[0].map50_95


def in_stock(path, pictures, family, monkeypatch):
    """mAP50-95 of what Ultralytics' own `predict` finds in the same letterboxed pictures, by the one evaluator."""
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import predict

    # `predict` keeps a box's best class alone; Ultralytics' val and the evaluator count each.
    every = functools.partial(predict.nms.non_max_suppression, multi_label=True)
    monkeypatch.setattr(predict.nms, "non_max_suppression", every)
    # Unless told so, Ultralytics takes the head that needs NMS, and not the one that is exported.
    head = {"nms": False} if family in networks.ONE_TO_ONE else {}
    yolo = YOLO(path)
    found, truths = [], []
    for picture in pictures.val:
        x, box = vision.letterbox(vision.decode(picture), networks.SIZE)
        x = torch.from_numpy(x)
        boxes = yolo.predict(x, conf=0.001, iou=0.7, max_det=300, verbose=False, **head)[0].boxes.data
        found.append(box.undo(boxes.numpy()))
        truths.append(measure.truth(pictures, picture))
    return accuracy.match(found, truths, list(pictures.names)).accuracy().map50_95


def test_pytorch_onnx_and_ultralytics_find_the_same(family, original, exported, pictures, monkeypatch):
    assert original > 0.3
    assert exported.accuracy["fp32"].map50_95 == pytest.approx(original, abs=SAME)
    assert in_stock(networks.path(family), pictures, family, monkeypatch) == pytest.approx(original, abs=SAME)


def test_pruned_it_still_detects_also_in_stock_ultralytics(family, original, pruned, pictures, monkeypatch):
    result, path = pruned
    assert result.after.macs <= 0.8 * result.before.macs
    kept = in_torch(path, pictures)
    assert kept >= KEPT * original
    assert in_stock(path, pictures, family, monkeypatch) == pytest.approx(kept, abs=SAME)


def test_compare_says_the_same(family, original, pruned, data, pictures):
    _, path = pruned
    compared = ep.compare(networks.path(family), path, data=data, rounds=1, pictures=0, quiet=True)
    assert [row.map50_95 for row in compared.items] == pytest.approx([original, in_torch(path, pictures)], abs=1e-6)
    assert f"{original:.3f}" in str(compared).splitlines()[1]


def test_every_precision_detects(original, exported):
    assert set(exported.accuracy) == {"fp32", "fp16", "int8", "int8-fp16"}
    for precision, found in exported.accuracy.items():
        assert found.map50_95 == pytest.approx(original, abs=INT8_DROP), precision


def test_the_drone_measures_what_the_host_did(family, exported, pictures, tmp_path):
    figures = {p: {k: getattr(a, k) for k in FIGURES} for p, a in exported.accuracy.items()}
    bundle = pack.pack(
        tmp_path / f"{family}.epb",
        name=family,
        target="jetson-orin",
        names=networks.NAMES,
        imgsz=networks.SIZE,
        end2end=family in networks.ONE_TO_ONE,
        models={p: {**figures[p], "pictures": len(pictures.val)} for p in figures},
        files=exported.files,
        engines={},
        plans={},
        evaluation=pack.evaluation_set(pictures, pictures.val),
        described={
            "pictures": len(pictures.val),
            "boxes": int(pictures.boxes(pictures.val).sum()),
            "accuracy": figures,
        },
        lineage={},
    )
    for precision in ("fp32", "int8"):
        report = benchmark.run(bundle, runtime="ort", precision=precision, threads=1, seconds=0.05, warmup_seconds=0.05)
        assert report.host_accuracy["map50_95"] == exported.accuracy[precision].map50_95
        assert report.accuracy.map50_95 == pytest.approx(exported.accuracy[precision].map50_95, abs=SAME)
