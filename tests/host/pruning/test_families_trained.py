"""Every family's trained network through the whole chain: pruned, compared, exported, quantized, packed, benchmarked.

What random weights cannot tell: that each step judges the head that is delivered, and keeps what it detects. The
networks and their pictures: tests/networks.
"""

import functools

import pytest
import torch
from edgeprune_device.benchmark import run
from edgeprune_device.machine.environment import Environment
from edgeprune_device.vision import accuracy, preprocess

import edgeprune as ep
from edgeprune import quantize
from edgeprune.data import dataset
from edgeprune.measuring.accuracy import true_boxes
from edgeprune.workflow import pack

from ... import networks

#: Between two ways to run the same network: rounding alone.
SAME = 0.005
#: Of its mAP50-95, what a network keeps at 80 % of its MACs before any fine-tuning.
KEPT = 0.9
#: mAP50-95 that a reduced precision may lose. One box in a class of 20 is worth as much.
DROP = 0.02
#: Between the host, which computes an INT8 file as it is written, and ONNX Runtime, which makes integer kernels of it.
FUSED = 0.01
FIGURES = ("map50", "map50_95", "small_map50_95")


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
def pruned(family, data, tmp_path_factory):
    result = ep.prune(networks.path(family), macs=0.8, data=data, quiet=True)
    return result, result.save(tmp_path_factory.mktemp(family) / "pruned.pt")


@pytest.fixture(scope="module")
def compared(family, data, pruned):
    return ep.compare(networks.path(family), pruned[1], data=data, rounds=1, pictures=0, quiet=True)


@pytest.fixture(scope="module")
def exported(family, data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # Which method of calibration suits best is another test's question, and three quarters of the time.
        patch.setattr(quantize, "METHODS", {"mse": quantize.METHODS["mse"]})
        # Three pictures to choose by would ask for rescued layers by chance: the limit is held on the 24 that judge.
        return ep.export(
            networks.path(family), data, out=tmp_path_factory.mktemp(f"{family}-onnx"), max_drop=0.1, quiet=True
        )


def in_ultralytics(path, pictures, family, monkeypatch):
    """mAP50-95 of what Ultralytics' own `predict` finds in the same letterboxed pictures, by the one evaluator."""
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import predict

    # `predict` keeps a box's best class alone; Ultralytics' val and the evaluator count each.
    every = functools.partial(predict.nms.non_max_suppression, multi_label=True)
    monkeypatch.setattr(predict.nms, "non_max_suppression", every)
    # Unless told so, Ultralytics takes the head that needs NMS, and not the one that is exported.
    head = {"nms": False} if family in networks.ONE_TO_ONE else {}
    yolo, found, truths = YOLO(path), [], []
    for picture in pictures.val:
        x, box = preprocess.letterbox(preprocess.decode(picture), networks.SIZE)
        result = yolo.predict(torch.from_numpy(x), conf=0.001, iou=0.7, max_det=300, verbose=False, **head)[0]
        found.append(box.undo(result.boxes.data.numpy()))
        truths.append(true_boxes(pictures, picture))
    return accuracy.match(found, truths, list(pictures.names)).accuracy().map50_95


def test_pytorch_onnx_and_ultralytics_find_the_same(family, compared, exported, pictures, monkeypatch):
    original = compared.items[0].map50_95
    assert original > 0.5
    assert exported.accuracy["fp32"].map50_95 == pytest.approx(original, abs=SAME)
    found = in_ultralytics(networks.path(family), pictures, family, monkeypatch)
    assert found == pytest.approx(original, abs=SAME)
    assert f" {original:.3f} " in next(line for line in str(compared).splitlines() if line.startswith(f"{family}.pt"))


def test_pruned_it_still_detects_also_in_stock_ultralytics(family, pruned, compared, pictures, monkeypatch):
    result, path = pruned
    assert result.after.macs <= 0.8 * result.before.macs
    before, after = (row.map50_95 for row in compared.items)
    assert after >= KEPT * before
    assert in_ultralytics(path, pictures, family, monkeypatch) == pytest.approx(after, abs=SAME)


def test_every_precision_still_detects(exported):
    assert set(exported.accuracy) == {"fp32", "fp16", "int8", "int8-fp16"}
    fp32 = exported.accuracy["fp32"].map50_95
    for precision, found in exported.accuracy.items():
        assert found.map50_95 >= fp32 - DROP, precision


@pytest.fixture(scope="module")
def bundle(family, exported, pictures, tmp_path_factory):
    figures = {p: {k: getattr(a, k) for k in FIGURES} for p, a in exported.accuracy.items()}
    count = len(pictures.val)
    return pack.pack(
        tmp_path_factory.mktemp(f"{family}-bundle") / f"{family}.epb",
        name=family,
        target="jetson-orin",
        names=networks.NAMES,
        imgsz=networks.SIZE,
        models={p: {**figures[p], "pictures": count} for p in figures},
        files=exported.files,
        engines={},
        plans={},
        evaluation=pack.evaluation_set(pictures, pictures.val),
        described={"pictures": count, "boxes": int(pictures.boxes(pictures.val).sum()), "accuracy": figures},
        lineage={},
    )


@pytest.mark.parametrize(("precision", "limit"), [("fp32", SAME), ("int8", FUSED)])
def test_the_drone_measures_what_the_host_did(family, exported, bundle, precision, limit, monkeypatch):
    if precision == "int8" and Environment.read().saturates:
        pytest.skip("this CPU has no VNNI: 8-bit products saturate, and bench says so")
    monkeypatch.setattr(run, "_GLANCE_S", 0)  # what else runs on this machine is not asked here
    assert bundle.manifest.output == ("end2end" if family in networks.ONE_TO_ONE else "raw")
    report = run.run_benchmark(bundle, runtime="ort", precision=precision, threads=1, seconds=0.05, warmup_seconds=0.05)
    assert report.host_accuracy["map50_95"] == exported.accuracy[precision].map50_95
    assert report.map50_95_delta == pytest.approx(0, abs=limit)
