"""The trained network of every family in the whole chain: pruned, compared, exported, quantized, packed, benchmarked.

Random weights cannot show that each step evaluates the exported head and preserves its detections. tests/networks has
the networks and their images. Of a network with two heads, the one-to-one head is asked for; the default is tested at
the end.
"""

import functools

import pytest
import torch
from edgeprune_device.benchmark import run
from edgeprune_device.benchmark.options import BenchmarkOptions
from edgeprune_device.machine.environment import Environment
from edgeprune_device.vision import accuracy, preprocess

import edgeprune as ep
from edgeprune import quantize
from edgeprune.data import dataset
from edgeprune.measuring.accuracy import true_boxes
from edgeprune.model import checkpoint, head
from edgeprune.model.head import ONE_TO_MANY, ONE_TO_ONE
from edgeprune.workflow import pack

from ... import networks

#: The difference between two ways to run the same network, from rounding alone.
SAME = 0.005
#: The share of its mAP50-95 that a network keeps at 80 % of its MACs before any fine-tuning.
KEPT = 0.9
#: The largest accuracy drop of a reduced precision; one box in a class of 20 accounts for as much.
DROP = 0.02
#: The difference between the host, which computes an INT8 file as written, and ONNX Runtime's integer kernels.
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


def head_of(family):
    return ONE_TO_ONE if family in networks.ONE_TO_ONE else None


@pytest.fixture(scope="module")
def pruned(family, data, tmp_path_factory):
    result = ep.prune(networks.path(family), macs=0.8, data=data, head=head_of(family), quiet=True)
    return result, result.save(tmp_path_factory.mktemp(family) / "pruned.pt")


@pytest.fixture(scope="module")
def compared(family, data, pruned):
    which = head_of(family)
    return ep.compare(networks.path(family), pruned[1], data=data, rounds=1, pictures=0, head=which, quiet=True)


@pytest.fixture(scope="module")
def exported(family, data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # Another test compares the calibration methods, which would take three quarters of the time here.
        patch.setattr(quantize, "METHODS", {"mse": quantize.METHODS["mse"]})
        # Three selection images would cause layer fallbacks by chance, so the limit applies to the 24 validation
        # images.
        return ep.export(
            networks.path(family), data, out=tmp_path_factory.mktemp(f"{family}-onnx"), max_drop=0.1,
            head=head_of(family), quiet=True,
        )  # fmt: skip


def in_ultralytics(path, pictures, which, monkeypatch):
    """The evaluator's mAP50-95 of Ultralytics' own `predict` on the same letterboxed images; which: the head, or None
    for Ultralytics' default."""
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import predict

    # `predict` keeps only the best class of a box; Ultralytics' val and the evaluator count each class.
    every = functools.partial(predict.nms.non_max_suppression, multi_label=True)
    monkeypatch.setattr(predict.nms, "non_max_suppression", every)
    head = {"nms": False} if which == ONE_TO_ONE else {}
    yolo, detected, truths = YOLO(path), [], []
    for picture in pictures.val:
        x, box = preprocess.letterbox(preprocess.decode(picture), networks.SIZE)
        result = yolo.predict(torch.from_numpy(x), conf=0.001, iou=0.7, max_det=300, verbose=False, **head)[0]
        detected.append(box.undo(result.boxes.data.numpy()))
        truths.append(true_boxes(pictures, picture))
    return accuracy.match(detected, truths, list(pictures.names)).accuracy().map50_95


def test_pytorch_onnx_and_ultralytics_have_equal_accuracy(family, compared, exported, pictures, monkeypatch):
    original = compared.items[0].map50_95
    assert original > 0.5
    assert exported.accuracy["fp32"].map50_95 == pytest.approx(original, abs=SAME)
    theirs = in_ultralytics(networks.path(family), pictures, head_of(family), monkeypatch)
    assert theirs == pytest.approx(original, abs=SAME)
    assert f" {original:.3f} " in next(line for line in str(compared).splitlines() if line.startswith(f"{family}.pt"))


def test_the_pruned_network_still_detects_also_in_stock_ultralytics(family, pruned, compared, pictures, monkeypatch):
    result, path = pruned
    assert result.after.macs <= 0.8 * result.before.macs
    before, after = (row.map50_95 for row in compared.items)
    assert after >= KEPT * before
    assert in_ultralytics(path, pictures, head_of(family), monkeypatch) == pytest.approx(after, abs=SAME)


def test_every_precision_still_detects(exported):
    assert set(exported.accuracy) == {"fp32", "fp16", "int8", "int8-fp16"}
    fp32 = exported.accuracy["fp32"].map50_95
    for precision, measured in exported.accuracy.items():
        assert measured.map50_95 >= fp32 - DROP, precision


@pytest.fixture(scope="module")
def bundle(family, exported, pictures, tmp_path_factory):
    figures = {p: {k: getattr(a, k) for k in FIGURES} for p, a in exported.accuracy.items()}
    count = len(pictures.val)
    return pack.pack(
        tmp_path_factory.mktemp(f"{family}-bundle") / f"{family}.epb",
        pack.Contents(
            name=family,
            target="jetson-orin",
            task="detect",
            names=networks.NAMES,
            imgsz=networks.SIZE,
            models={p: {**figures[p], "pictures": count} for p in figures},
            files=exported.files,
            engines={},
            plans={},
            evaluation=pack.evaluation_set(pictures, pictures.val),
            described={"pictures": count, "boxes": int(pictures.boxes(pictures.val).sum()), "accuracy": figures},
            lineage={},
        ),
    )


@pytest.mark.parametrize(("precision", "limit"), [("fp32", SAME), ("int8", FUSED)])
def test_the_drone_measures_the_hosts_accuracy(family, exported, bundle, precision, limit, monkeypatch):
    if precision == "int8" and Environment.read().saturates:
        pytest.skip("this CPU has no VNNI: 8-bit products saturate, which bench reports")
    monkeypatch.setattr(run, "_GLANCE_S", 0)  # skip the check for other programs on this machine
    assert bundle.manifest.output == ("end2end" if family in networks.ONE_TO_ONE else "raw")
    report = run.run_benchmark(
        bundle, BenchmarkOptions(runtime="ort", precision=precision, threads=1, seconds=0.05, warmup_seconds=0.05)
    )
    assert report.host_accuracy["map50_95"] == exported.accuracy[precision].map50_95
    assert report.map50_95_delta == pytest.approx(0, abs=limit)


# --- two heads --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", networks.ONE_TO_ONE)
def test_the_default_head_is_that_of_ultralytics(family, data, pictures, monkeypatch):
    (item,) = ep.compare(networks.path(family), data=data, rounds=1, pictures=0, quiet=True).items
    assert item.head == ONE_TO_MANY
    theirs = in_ultralytics(networks.path(family), pictures, None, monkeypatch)
    assert item.map50_95 == pytest.approx(theirs, abs=SAME)


@pytest.mark.parametrize("family", networks.ONE_TO_ONE)
@pytest.mark.parametrize("which", head.HEADS)
def test_both_heads_of_a_pruned_checkpoint_work_in_stock_ultralytics(
    family, which, data, pictures, tmp_path, monkeypatch
):
    """The head that is not exported keeps all of its own channels and is compensated; the plan does not count it."""
    result = ep.prune(networks.path(family), macs=0.8, data=data, head=which, quiet=True)
    path = result.save(tmp_path / "pruned.pt")
    assert head.of_network(checkpoint.load(path).model) == which
    tuned = ep.finetune(path, data, epochs=1, quiet=True)
    assert head.of_network(tuned.checkpoint.model) == which and tuned.before.map50_95 > 0.5
    other = next(name for name in head.HEADS if name != which)
    for each in (which, other):
        before = in_ultralytics(networks.path(family), pictures, each, monkeypatch)
        assert in_ultralytics(path, pictures, each, monkeypatch) >= KEPT * before
