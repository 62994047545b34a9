"""qat: training with the rounding of the written file, an unchanged model, and scales that reach the file."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from edgeprune_device import cli
from edgeprune_device.errors import EdgepruneError, InputError
from edgeprune_device.trust.bundle import Bundle
from onnx import TensorProto, helper, numpy_helper
from ultralytics.nn.tasks import DetectionModel

import edgeprune as ep
from edgeprune import quantize as q
from edgeprune.console.progress import Reporter
from edgeprune.data import dataset
from edgeprune.exporting.parity import measure_parity
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.model import checkpoint
from edgeprune.model.device import choose
from edgeprune.model.head import select
from edgeprune.quantize.graph import Graph, layer_of
from edgeprune.training import finetune, qat
from edgeprune.training.finetune import TrainingSettings
from edgeprune.workflow import build, stages

from ..builds import RUN as BUILD
from ..builds import request
from ..small import dataset as pictures_of
from ..small import save, settle, short

SIZE = 96


def pictures(count=4):
    rng = np.random.default_rng(0)
    return [rng.random((1, 3, SIZE, SIZE), dtype=np.float32) for _ in range(count)]


def detector(config):
    torch.manual_seed(0)
    model = DetectionModel(config, nc=4, verbose=False)
    settle(model, 4, SIZE, least=1.0)
    return model.eval()


def integers(int8):
    """{layer: the file's rounded weights, -127 to 127}"""
    graph, rounded = Graph(int8), {}
    given = {t.name: t for t in int8.graph.initializer}
    for node in graph.nodes:
        if node.op_type == "Conv" and node.input[1] in graph.producer:
            whole = given[graph.producer[node.input[1]].input[0]]
            rounded[layer_of(node)] = torch.from_numpy(numpy_helper.to_array(whole).astype(np.float32))
    return rounded


def forced(model, scheme, int8, picture, monkeypatch):
    """(output, output of the file, {tensor: difference in steps}) of an unfused model in eval mode.

    Each rounded tensor is compared with ONNX Runtime's, each rounded weight with the file's, and the pass continues
    with theirs, so that a difference does not spread. (Otherwise a random network would amplify one value that rounds
    to the other side of a half.)
    """
    weights = integers(int8)
    opened = copy.deepcopy(int8)
    for tensor in scheme.steps:
        opened.graph.output.append(helper.make_tensor_value_info(f"{tensor}_dq", TensorProto.FLOAT, None))
    session = q.reference_session(opened)
    file = dict(zip((o.name for o in session.get_outputs()), session.run(None, {"images": picture})))
    apart = {}

    class Forced(qat._Calls):
        def _round(self, x, tensor):
            theirs = torch.from_numpy(file[f"{tensor}_dq"])
            steps = (super()._round(x, tensor) - theirs) / self._scheme.steps[tensor]
            apart.setdefault(tensor, []).append(steps.abs().round())
            return theirs

        def _convolution(self, x, weight, *more):
            layer = self._running[-1]
            x, rounded, *more = super()._convolution(x, weight, *more)
            if layer in weights:
                scale = weight.abs().amax((1, 2, 3), keepdim=True) / 127
                ours = (rounded / scale).round()
                apart.setdefault(layer, []).append((ours - weights[layer]).abs())
                rounded = weights[layer] * scale
            return (x, rounded, *more)

    monkeypatch.setattr(qat, "_Calls", Forced)
    with torch.no_grad(), qat.rounded(model, scheme):
        output = model(torch.from_numpy(picture))
    return output, file["output0"], apart


# --- the same rounding as the file's


@pytest.mark.parametrize(
    "config, which", [("yolov8n.yaml", None), ("yolo11n.yaml", None), ("yolo26n.yaml", "one-to-one")]
)
def test_the_forward_pass_in_training_equals_the_file(config, which, monkeypatch):
    """Batch norm is separate here and folded in the file; additions are included. A few values in a million, within
    float precision of a half, may round to the other side, but never by more than one step.
    """
    model = detector(config)
    select(model, which)
    fp32 = to_onnx(model, (SIZE, SIZE))
    ranges = q.calibrate(fp32, pictures())
    scheme = qat.of_graph(fp32, ranges)
    int8 = q.to_int8(fp32, ranges)
    output, expected, apart = forced(model, scheme, int8, pictures()[0], monkeypatch)
    # The file also rounds the inputs of Concat, Split, MaxPool and Resize, which share a scale.
    calls = [t for ts in scheme.convolutions.values() for t in ts]
    calls += [t for pairs in scheme.additions.values() for pair in pairs if pair for t in pair]
    calls += integers(int8)
    assert set(calls) == set(apart) and sum(map(len, apart.values())) == len(calls)
    steps = torch.cat([a.flatten() for parts in apart.values() for a in parts])
    assert float(steps.max()) <= 1 and float((steps > 0).float().mean()) < 5e-5
    if expected.shape[2] != 6:  # the file of a one-to-one head selects rows, the model's output does not
        difference = np.abs(output[0].numpy() - expected)[0]
        assert difference[:4].max() < 1e-3 and difference[4:].max() < 1e-5


def test_an_unrounded_addition_is_detected(monkeypatch):
    model = detector("yolov8n.yaml")
    fp32 = to_onnx(model, (SIZE, SIZE))
    ranges = q.calibrate(fp32, pictures())
    scheme = qat.of_graph(fp32, ranges)
    without = qat.Scheme(scheme.convolutions, {}, scheme.steps, scheme.thresholds)
    _, _, apart = forced(model, without, q.to_int8(fp32, ranges), pictures()[0], monkeypatch)
    sums = [apart["/model.4/m.1/cv1/act/Mul_output_0"], apart["/model.4/m.0/Add_output_0"]]
    assert float((sums[0][0] > 0).float().mean()) < 1e-3 < 0.05 < float((sums[1][0] > 0).float().mean())


def test_the_scales_of_the_scheme_equal_those_of_the_file():
    fp32 = to_onnx(short(), (SIZE, SIZE))
    ranges = q.calibrate(fp32, pictures())
    scheme = qat.of_graph(fp32, ranges, method="percentile")
    written = q.to_int8(fp32, ranges.fixed(scheme.thresholds), method="qat")
    assert written.SerializeToString() == q.to_int8(fp32, ranges, method="percentile").SerializeToString()
    constants = {t.name: numpy_helper.to_array(t) for t in written.graph.initializer}
    assert {t: constants[f"{t}_scale"].item() for t in scheme.steps} == scheme.steps
    assert json.loads(json.dumps(scheme.to_json())) == scheme.to_json()


def test_thresholds_of_another_network_are_refused():
    fp32 = to_onnx(short(), (SIZE, SIZE))
    ranges = q.calibrate(fp32, pictures(1))
    with pytest.raises(InputError, match=r"another network .*has no tensor /model\.99"):
        ranges.fixed({"/model.99/act/Mul_output_0": 1.0})
    with pytest.raises(InputError, match="no finite range"):
        q.to_int8(fp32, ranges.fixed({"images": 1.0}))


def test_the_gradient_of_weights_passes_straight_through():
    weight = torch.randn(8, 4, 3, 3, requires_grad=True)
    with torch.no_grad():
        weight[3] = 0  # a pruned or dead channel
    step = weight.detach().abs().max() / 127
    error = (qat.round_weight(weight) - weight).detach().abs()
    assert float(error[3].max()) == 0 < float(error.max()) <= float(step) / 2
    qat.round_weight(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


# --- other networks and failed passes


@pytest.fixture
def planned(small):
    return small, qat.plan(small, SIZE, pictures(2))


def test_other_networks_are_not_rounded_nor_this_one_afterwards(planned):
    model, scheme = planned
    average, x = copy.deepcopy(model), torch.from_numpy(pictures()[0])
    with torch.no_grad():
        plain = model(x)[0]
        with qat.rounded(model, scheme):
            assert not torch.equal(model(x)[0], plain)
            assert torch.equal(average(x)[0], plain)
        assert torch.equal(model(x)[0], plain)


def test_a_forward_pass_that_fails_leaves_no_trace(planned):
    model, scheme = planned
    x = torch.from_numpy(pictures()[0])
    with torch.no_grad(), qat.rounded(model, scheme):
        whole = model(x)[0]
        with pytest.raises(RuntimeError, match="to have 3 channels"):
            model(x[:, :2])
        assert torch.equal(model(x)[0], whole)


def test_a_scheme_of_another_network_is_detected(planned):
    model, scheme = planned
    scheme.convolutions["model.2.m.0.cv9.conv"] = ["images"]
    message = r"layer model\.2\.m\.0\.cv9\.conv: 1 conv in the scheme, 0 in the network"
    with torch.no_grad(), qat.rounded(model, scheme), pytest.raises(EdgepruneError, match=message):
        model(torch.from_numpy(pictures()[0]))


def test_blocks_that_export_merges_are_refused_by_name():
    """YOLOv9's RepConv has two convolutions in the checkpoint and one in the file."""
    with pytest.raises(InputError, match=r"^qat: layer model\.\S+ of the exported network is not one convolution"):
        qat.plan(detector("yolov9t.yaml"), SIZE, pictures(1))


# --- training


def train(weights, data, folder, on_step=None, **more):
    settings = TrainingSettings(**{"epochs": 1, "batch": 4, "imgsz": SIZE, "lr": 1e-3, "qat": True, **more})
    out = folder / "qat.pt"
    return finetune.finetune_network(weights, dataset.load(data), out, settings, folder / "work", on_step=on_step), out


def test_training_rounds_keeps_statistics_and_stores_its_scales(weights, data, tmp_path):
    seen = {}

    def observe(p):
        trainer = p.trainer
        norms = [m for m in trainer.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        seen["training"] = trainer.model.training and not any(m.training for m in norms)
        seen["classes"] = {type(m) for m in trainer.model.modules()}
        with torch.no_grad():
            x = torch.from_numpy(pictures()[0])
            plain = copy.deepcopy(trainer.model).eval()(x)[0]
            seen["rounds"] = not torch.equal(trainer.model.eval()(x)[0], plain)
            trainer._model_train()

    result, out = train(weights, data, tmp_path, observe)
    assert result["steps"] == 2 and seen["training"] and seen["rounds"]
    before, after = (checkpoint.load(p) for p in (weights, out))
    assert seen["classes"] == {type(m) for m in before.model.modules()}
    a, b = before.model.state_dict(), after.model.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a if "running" in k)
    assert sum(not torch.equal(a[k], b[k]) for k in a if "weight" in k) > 25
    stored = qat.thresholds(after)
    assert stored == json.loads((tmp_path / "work/scheme.json").read_text())["thresholds"]
    assert qat.thresholds(before) is None
    checkpoint.save(tmp_path / "again.pt", after.model, like=after)  # like every stage that changes weights
    assert qat.thresholds(checkpoint.load(tmp_path / "again.pt")) is None


def test_the_files_are_written_with_the_scales_of_the_checkpoint(weights, data, tmp_path):
    _, out = train(weights, data, tmp_path)
    tuned = checkpoint.load(out)
    given = {"precision": ("fp32", "int8"), "max_drop": 1.0, "quiet": True}
    jetson, cpu = (
        {p: onnx.load(f) for p, f in ep.export(tuned, data, imgsz=SIZE, target=name, **given).files.items()}
        for name in ("jetson-orin", "cpu")
    )
    written = {t.name: numpy_helper.to_array(t) for t in jetson["int8"].graph.initializer}
    half = jetson["int8-fp16"].graph
    scales = {t.name: float(numpy_helper.to_array(t)) for t in half.initializer if not t.dims and "scale" in t.name}
    quantized = np.array([scales[n.input[1]] for n in half.node if n.op_type == "QuantizeLinear"])
    for name, threshold in qat.thresholds(tuned).items():
        assert written[f"{name}_scale"] == np.float32(threshold / 127)
        assert np.isclose(quantized, threshold / 127, rtol=1e-3).any()  # rounded up to half precision
    # The network was not trained for unsigned activations, so the file is calibrated as usual.
    assert TensorProto.UINT8 in {t.data_type for t in cpu["int8"].graph.initializer}


STOCK = """
import sys
sys.modules["edgeprune"] = sys.modules["edgeprune_device"] = None
from ultralytics import YOLO
model = YOLO(sys.argv[1])
print("STOCK", len(model.predict(sys.argv[2], imgsz=96, verbose=False, save=False)), "edgeprune_qat" in model.ckpt)
"""


# Without safe loading Ultralytics accepts more, not less.
@pytest.mark.parametrize("safe", [pytest.param("0", marks=pytest.mark.slow), "1"])
def test_stock_ultralytics_opens_a_checkpoint_with_scales_without_edgeprune(weights, data, tmp_path, safe):
    source = checkpoint.load(weights)
    scheme = qat.Scheme({}, {}, {}, {"images": 1.0})
    checkpoint.save(tmp_path / "qat.pt", source.model, like=source, extra=qat.carried(scheme))
    picture = next((data.parent / "images" / "val").iterdir())
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(tmp_path / "qat.pt"), str(picture)],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "ULTRALYTICS_SAFE_LOAD": safe},
    )  # fmt: skip
    assert "STOCK 1 True" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("content", [[], {}, {"thresholds": {"a": -1.0}}, {"thresholds": {"a": float("nan")}}, "x"])
def test_damaged_scales_are_refused(weights, tmp_path, content):
    source = checkpoint.load(weights)
    checkpoint.save(tmp_path / "qat.pt", source.model, like=source, extra={qat.KEY: content})
    with pytest.raises(InputError, match="the quantization scales are damaged"):
        qat.thresholds(checkpoint.load(tmp_path / "qat.pt"))


RUN = """
import sys
from pathlib import Path
from types import SimpleNamespace
from edgeprune.data import dataset
from edgeprune.training import finetune
from edgeprune.training.finetune import TrainingSettings
weights, data, out, work, log = map(Path, sys.argv[1:])
settings = TrainingSettings(epochs=4, batch=4, imgsz=96, lr=1e-4, qat=True)
def note(p):
    with open(log, "a") as file:
        print(p.epoch - 1, file=file)
print(finetune.finetune_network(weights, dataset.load(data), out, settings, work, on_step=note))
"""


@pytest.mark.slow  # similar tests run always
def test_a_resumed_training_keeps_its_scheme(weights, data, tmp_path):
    out, work, log = tmp_path / "qat.pt", tmp_path / "work", tmp_path / "log"
    command = [sys.executable, "-c", RUN, *map(str, (weights, data, out, work, log))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (work / "train" / "weights" / "last.pt").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    scheme = json.loads((work / "scheme.json").read_text())
    scheme["thresholds"]["images"] *= 1.5  # a new scheme would lose this
    (work / "scheme.json").write_text(json.dumps(scheme))
    reached = len(log.read_text().splitlines())
    log.unlink()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'steps': 8" in done.stdout and 0 < len(log.read_text().splitlines()) < 8
    assert reached > 0 and qat.thresholds(checkpoint.load(out)) == scheme["thresholds"]


def test_a_process_for_several_gpus_also_rounds(weights, data, tmp_path, monkeypatch):
    """Ultralytics' DDP sends this class's name, its arguments and a folder to a process; see test_ddp."""
    pytest.importorskip("cloudpickle")
    from ultralytics.utils.dist import ddp_cleanup, generate_ddp_file

    from edgeprune.training.trainer import KeepArchitecture

    sent = []
    monkeypatch.setattr(KeepArchitecture, "train", lambda self: sent.append((self, generate_ddp_file(self))))
    monkeypatch.setattr(KeepArchitecture, "check_architecture", lambda self: None)
    start, pairs = checkpoint.load(weights), dataset.load(data)
    settings = TrainingSettings(epochs=1, batch=4, imgsz=SIZE, lr=1e-3, qat=True).placed(choose("cpu"), 4)
    run = finetune._TrainingRun(tmp_path / "work", finetune._identity(weights, pairs, settings, None))
    scheme = run.scheme(start.model, pairs, SIZE)
    finetune._train(finetune._Job(start, pairs, run, None, scheme, on_step=None), settings)
    ((trainer, script),) = sent
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    ddp_cleanup(trainer, script)
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = (checkpoint.load(p).model.state_dict() for p in (weights, run.last))
    statistics = [k for k in before if "running" in k]
    assert statistics and all(torch.equal(before[k], after[k]) for k in statistics)  # the scheme was applied
    assert not torch.equal(before["model.0.conv.weight"], after["model.0.conv.weight"])


def test_incompatible_settings_are_refused():
    for more in ({"patience": 2}, {"sparsity": 1e-5}):
        with pytest.raises(InputError, match="qat: cannot be combined with"):
            TrainingSettings(qat=True, **more)


# --- the commands


@pytest.mark.parametrize(("after", "warned"), [(0.30, True), (0.41, False)])
def test_build_warns_if_qat_lowered_the_accuracy(weights, tmp_path, monkeypatch, capsys, after, warned):
    monkeypatch.setattr(stages, "_finetune", lambda *_, **__: {"epochs": 1, "steps": 4, "batch": 4})
    job = SimpleNamespace(
        request=SimpleNamespace(qat_settings=TrainingSettings), model_path=lambda name: weights, work=tmp_path,
        imgsz=(SIZE, SIZE), session=lambda model: None,
        evaluate=lambda *_: (SimpleNamespace(map50_95=after), None), enter=lambda *_, **__: None,
        record={"models": {"tuned": {"map50_95": 0.40}}}, reporter=Reporter(quiet=True),
    )  # fmt: skip
    stages.qat(job, lambda *_: None)
    assert ("qat lowered mAP50-95 in float from 0.400 to 0.300" in capsys.readouterr().err) == warned


@pytest.mark.slow  # similar tests run always
def test_a_build_killed_during_qat_resumes(tmp_path):
    save(short(), tmp_path / "best.pt")
    pictures_of(tmp_path / "data", train=16, val=4)
    asked = request(tmp_path, qat=1, epochs=1, precision=("fp32", "int8"))
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, json.dumps(asked.to_json()), str(out)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stderr:
        if line.strip().endswith("] qat"):
            os.kill(process.pid, signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    kept = (out / "tuned.pt").stat().st_mtime_ns
    record = build.run_build(asked, out, Reporter(quiet=True), resume=True)
    names = [s["name"] for s in record["stages"]]
    assert names[3:6] == ["finetune", "qat", "export"] and (out / "tuned.pt").stat().st_mtime_ns == kept
    assert list(record["models"]) == ["original", "pruned", "tuned", "qat", "fp32", "int8", "int8-fp16"]
    done = {s["name"]: s for s in record["stages"]}
    assert (done["qat"]["epochs"], done["qat"]["steps"], done["qat"]["lr"]) == (1, 4, pytest.approx(1e-5))
    assert done["quantize"]["int8"]["method"] == "qat"
    trained = checkpoint.load(out / "qat.pt")
    assert record["models"]["qat"]["map50_95"] is not None
    assert measure_parity(trained.model, out / "model.fp32.onnx", pictures(1)).max_score < 1e-4
    graph = onnx.load(out / "model.int8.onnx").graph
    scales = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith("_scale")}
    assert all(scales[f"{n}_scale"] == np.float32(t / 127) for n, t in qat.thresholds(trained).items())
    assert len(Bundle.open(out / "small.epb").manifest.lineage["qat_sha256"]) == 64
    # Without qat, the earlier stages stay and the later ones run again.
    record = build.run_build(replace(asked, qat=0), out, Reporter(quiet=True), resume=True)
    assert "qat" not in record["models"] and not (out / "qat.pt").exists()
    assert (out / "tuned.pt").stat().st_mtime_ns == kept
    assert next(s for s in record["stages"] if s["name"] == "quantize")["int8"]["method"] in q.METHODS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "cpu"}, "target cpu uses unsigned INT8; leave the option out"),
        ({"precision": ("fp32", "fp16")}, r"needs int8 in precision \(found fp32,fp16\)"),
        ({"lr": 0.0}, "lr: invalid value"),
    ],
)
def test_invalid_options_of_build_are_refused(weights, data, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        build.run_build(request(tmp_path, qat=1, **change), tmp_path / "out", Reporter(quiet=True))
    assert not (tmp_path / "out").exists()


def test_the_command_trains_and_refuses_invalid_options(weights, data, tmp_path, capsys):
    words = ["finetune", "--quiet", "--weights", weights, "--data", data, "--batch", "4"]
    assert cli.main([str(w) for w in (*words, "--qat", "1")]) == 0
    printed = capsys.readouterr().out
    assert printed.count(", INT8 0.") == 2 and "1 epoch, 2 steps of 4 images, lr 1e-05" in printed
    out = weights.with_name("best-qat.pt")
    assert qat.thresholds(checkpoint.load(out))["images"] == pytest.approx(1, abs=0.1)
    for bad, says in (
        (["--qat", "-1"], "--qat: invalid value (found '-1'"),
        (["--qat", "--patience", "2"], "--qat: cannot be combined with"),
        (["--qat", "--sparsity", "1e-4"], "--qat: cannot be combined with"),
        (["--qat", "--lr", "5"], "--lr: invalid value (found '5'"),
        (["--qat", "many"], "--qat"),
    ):
        assert cli.main([str(w) for w in (*words, *bad)]) == 2
        error = capsys.readouterr().err.strip()
        assert says in error and "\n" not in error, error
    source = checkpoint.load(weights)
    checkpoint.save(weights, source.model, like=source, extra={qat.KEY: {"thresholds": {"images": -1.0}}})
    before = out.stat().st_mtime_ns
    assert cli.main([str(w) for w in (*words, "--qat")]) == 2  # before, not after, an hour of training
    assert "scales are damaged" in capsys.readouterr().err and out.stat().st_mtime_ns == before
    assert cli.main(["build", "--ratio", "0.2", "--target", "jetson-orin", "--qat", "-1"]) == 2
    assert "--qat: invalid value (found '-1'" in capsys.readouterr().err
