"""build, from a checkpoint and pictures to a signed bundle; interrupted, resumed, refused."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from edgeprune_device.benchmark import run
from edgeprune_device.errors import GateError, InputError
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision.evaluation import EvaluationSet

import edgeprune as ep
from edgeprune import quantize
from edgeprune.comparison import compare, items
from edgeprune.console.progress import Reporter
from edgeprune.data.dataset import load
from edgeprune.model import checkpoint
from edgeprune.pruning.budget import Budget
from edgeprune.workflow import build, record, resume
from edgeprune.workflow.job import Job

from .. import forked
from ..builds import RUN, fitted_inputs, options

STAGES = ["baseline", "plan", "prune", "finetune", "export", "quantize", "engine", "pack", "page"]


@pytest.fixture(scope="module")
def built(inputs):
    out = inputs / "built"
    return build.run_build(options(inputs), out, Reporter(quiet=True)), out


def test_the_files_of_the_contract(built):
    record, out = built
    assert {p.name for p in out.iterdir()} == {
        "plan.json", "pruned.pt", "tuned.pt", "model.fp32.onnx", "model.fp16.onnx", "model.int8.onnx",
        "model.int8-fp16.onnx", "small.epb", "build.json", "report.html", "comparison.json",
    }  # fmt: skip
    assert json.loads((out / "build.json").read_text()) == record
    assert [s["name"] for s in record["stages"]] == STAGES
    assert all(s["seconds"] >= 0 for s in record["stages"])
    assert list(record["models"]) == ["original", "pruned", "tuned", "fp32", "fp16", "int8", "int8-fp16"]
    for entry in record["models"].values():
        assert {"path", "parameters", "macs", "channels", "size_bytes", "map50", "map50_95", "latency_ms"} <= set(entry)
    assert len(record["inputs"]["weights_sha256"]) == 64


def test_figures_are_of_the_files(built):
    record, out = built
    for name in ("pruned", "tuned"):
        entry, model = record["models"][name], checkpoint.load(out / f"{name}.pt").model
        assert entry["parameters"] == sum(p.numel() for p in model.parameters())
        assert entry["size_bytes"] == (out / f"{name}.pt").stat().st_size
        assert entry["latency_ms"] is None  # a .pt was not timed
    assert record["models"]["tuned"]["parameters"] == record["models"]["pruned"]["parameters"]
    original = record["models"]["original"]
    assert record["models"]["pruned"]["parameters"] < 0.85 * original["parameters"]
    assert record["models"]["pruned"]["macs"] <= 0.78 * original["macs"]
    assert record["models"]["int8-fp16"]["latency_ms"] is None
    plan = json.loads((out / "plan.json").read_text())
    assert abs(plan["removed"] / plan["prunable"] - 0.2) < 0.03


def test_auto_took_the_better(built):
    done = next(s for s in built[0]["stages"] if s["name"] == "plan")
    assert done["criterion"] == "energy"


def test_the_bundle(built):
    record, out = built
    bundle = Bundle.open(out / "small.epb")
    assert bundle.trusted
    for precision in ("fp32", "fp16", "int8", "int8-fp16"):
        payload = bundle.read(bundle.manifest.models[precision]["payload"])
        assert payload == (out / f"model.{precision}.onnx").read_bytes()
        assert bundle.manifest.models[precision]["map50_95"] == record["models"][precision]["map50_95"]
    pictures = EvaluationSet.read(bundle.read("evaluation.zip"))
    assert len(pictures) == 4 and bundle.manifest.evaluation["boxes"] == pictures.boxes
    assert bundle.manifest.lineage["tuned"]["parameters"] == record["models"]["tuned"]["parameters"]
    opsets = {p: m["opset"] for p, m in bundle.manifest.models.items()}
    assert opsets["int8"] == 17 and opsets["int8-fp16"] >= 19
    assert all(e["payload"] is None and e["reason"] for e in bundle.manifest.engines.values())


def test_bench_reads_it_and_agrees_with_the_host(built, tmp_path):
    _, out = built
    done = subprocess.run(
        [sys.executable, "-m", "edgeprune", "bench", str(out / "small.epb"), "--precision", "fp32", "--threads", "1",
         "--seconds", "1", "--warmup", "1", "--report", str(tmp_path / "report.json"), "--max-drop", "0.001"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "end to end" in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["accuracy"]


def test_in_two_steps_with_the_original_as_the_teacher(inputs, tmp_path):
    """Each step is cut and tuned; together they meet the budget; interrupted, the second goes on from the first."""
    asked = options(inputs, budget=Budget("macs", 0.6), steps=2, distill=True, precision=("fp32",))
    record = build.run_build(asked, tmp_path, Reporter(quiet=True))
    assert [s["name"] for s in record["stages"]][:3] == ["baseline", "step 1", "plan"]
    macs = {name: m["macs"] for name, m in record["models"].items()}
    middle = next(s for s in record["stages"] if s["name"] == "step 1")
    assert 0.6**0.5 * 0.98 <= middle["macs"] / macs["original"] <= 0.6**0.5 * 1.002
    assert 0.6 * 0.98 <= macs["tuned"] / macs["original"] <= 0.6 * 1.002
    assert [s["epochs"] for s in record["stages"] if s["name"] in ("step 1", "finetune")] == [1, 1]
    (tmp_path / "plan.json").unlink()
    with_plan = build.run_build(asked, tmp_path, Reporter(quiet=True), resume=True)
    assert with_plan["models"]["pruned"]["macs"] == macs["pruned"]


def test_a_finished_build_resumes_to_itself(built, inputs):
    record, out = built
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.name != "build.json"}
    assert build.run_build(options(inputs), out, Reporter(quiet=True), resume=True) == record
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.name != "build.json"} == before


def test_another_gallery_needs_the_page_only(built, inputs, tmp_path):
    """What the models find was thrown away when the build was done: it is found again."""
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(built[1], out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    record = build.run_build(options(inputs, pictures=2), out, Reporter(quiet=True), resume=True)
    changed = {p.name for p in out.iterdir() if p.read_bytes() != before[p.name]}
    assert changed == {"report.html", "comparison.json", "build.json"}
    assert record["stages"][:-1] == built[0]["stages"][:-1]
    shown, first = (ep.Build.open(folder).comparison.gallery["pictures"] for folder in (out, built[1]))
    assert shown == first[:2]
    # Begun again and killed before it is done, it does not count as done.
    (out / "report.html").unlink()
    with pytest.raises(RuntimeError, match="killed"), pytest.MonkeyPatch.context() as patch:
        killed = lambda job, progress: (_ for _ in ()).throw(RuntimeError("killed"))  # noqa: E731
        patch.setattr("edgeprune.workflow.stages.page", killed)
        build.run_build(options(inputs, pictures=2), out, Reporter(quiet=True), resume=True)
    with pytest.raises(InputError, match="not finished"):
        ep.Build.open(out)


def test_what_cannot_be_resumed(built, inputs):
    _, out = built
    with pytest.raises(InputError, match="already holds a build"):
        build.run_build(options(inputs), out, Reporter(quiet=True))
    with pytest.raises(InputError, match="budget changed"):
        build.run_build(options(inputs, budget=Budget("ratio", 0.3)), out, Reporter(quiet=True), resume=True)


def test_the_page_shows_what_was_measured(built):
    record, out = built
    shown = ep.Build.open(out).comparison
    assert record["page"] == "report.html" and shown.kind == "build"
    assert [row.name for row in shown.items] == list(record["models"])
    for row in shown.items:
        entry = record["models"][row.name]
        assert (row.map50_95, row.macs, row.latency_ms) == (entry["map50_95"], entry["macs"], entry["latency_ms"])
        assert row.pictures == 4 and row.sha256 and row.layers
        assert (row.stages_ms is None) == (row.latency_ms is None)
    assert shown.items[0].size_bytes == record["models"]["original"]["stripped_size_bytes"]
    assert [gate["passed"] for gate in shown.gates if "parser" not in gate["name"]] == [True] * 6
    assert {p["name"] for p in shown.gallery["pictures"]} == {p.name for p in load(out.parent / "data/data.yaml").val}
    assert list(shown.gallery["pictures"][0]["found"]) == list(record["models"])
    assert (out / "report.html").read_text() == shown.html()


def test_the_page_names_the_layers_that_int8_spared(built):
    """As the ladder writes them into the record; where no INT8 was made, nothing is said of it."""
    from edgeprune.quantize.ladder import Ladder
    from edgeprune.quantize.sensitivity import LayerSensitivity

    record, out = json.loads(json.dumps(built[0])), built[1]
    ladder = Ladder((LayerSensitivity("model.2.cv2.conv", 0.1, 0.02),), (0, 1))
    stages_ = {stage["name"]: stage for stage in record["stages"]}
    stages_["quantize"]["int8"]["rescued"] = ladder.to_json(1)
    shown = compared(record, out)
    assert shown.more["rescued"] == ["model.2.cv2.conv"] and "model.2.cv2.conv</dd>" in shown.html()
    del stages_["quantize"]["int8"]
    assert "Kept from INT8" not in compared(record, out).html()


def compared(built_record, out):
    return record.compared(built_record, out, ("a", "b", "c"), None, None)


def test_a_changed_file_takes_its_stage_with_it(built, inputs, tmp_path):
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(built[1], out)
    (out / "model.fp16.onnx").write_bytes(b"damaged")
    job = Job(options(inputs), out, Reporter(quiet=True))
    record = resume.begin(job, resume=True)
    assert [s["name"] for s in record["stages"]] == STAGES[:5]
    assert not (out / "small.epb").exists(), "a bundle of files that are being made again must not be delivered"
    assert set(record["models"]) == {"original", "pruned", "tuned", "fp32"}


def test_memory_options_may_change_until_the_training_is_done(built, inputs, tmp_path):
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(built[1], out)
    job = Job(options(inputs, batch=2), out, Reporter(quiet=True))
    with pytest.raises(InputError, match="batch changed"):
        resume.begin(job, resume=True)
    (out / "tuned.pt").unlink()
    resume.begin(job, resume=True)  # the record says finetune is done: only a second look tells it is not


def test_two_builds_in_one_folder(inputs, tmp_path):
    with build._locked(tmp_path), pytest.raises(InputError, match="another build is running"):
        build.run_build(options(inputs), tmp_path, Reporter(quiet=True))


def test_killed_in_every_long_stage_and_resumed(inputs, tmp_path):
    """kill -9 as soon as a stage begins; what was finished stays, and the end is whole."""
    out = tmp_path / "out"
    words = (json.dumps(options(inputs).to_json()), out)
    for stage in ("plan", "finetune", "quantize", "engine"):
        process = forked.Process(RUN, *words, folder=tmp_path)
        process.until(lambda: f"] {stage}\n" in process.err.read_text())  # noqa: B023
        time.sleep(0.2)
        assert process.kill(signal.SIGKILL) == -signal.SIGKILL, f"{stage} was over"
        record = json.loads((out / "build.json").read_text())
        done = [s["name"] for s in record["stages"]]
        assert done == STAGES[: len(done)] and stage not in done
        assert not list(out.glob("*.epb"))
    finished = forked.run(RUN, *words, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("done before, kept") == 6
    assert Bundle.open(out / "small.epb").trusted
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_a_failed_gate_writes_no_bundle_and_tells_the_figures(inputs, tmp_path, monkeypatch):
    """An INT8 file whose weights are all zero: what a broken calibration would leave."""
    whole = quantize.to_int8

    def broken(*args, **kwargs):
        model = whole(*args, **kwargs)
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4:
                zero = np.zeros(tuple(tensor.dims), dtype=np.int8)
                tensor.CopyFrom(onnx.numpy_helper.from_array(zero, tensor.name))
        return model

    monkeypatch.setattr(quantize, "to_int8", broken)
    fitted = fitted_inputs(inputs, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.int8.onnx").write_text("of a job that was killed while it timed its files")
    with pytest.raises(GateError, match=r"int8 loses 0\.\d+ mAP50-95 .* --max-drop 0.0005"):
        build.run_build(options(fitted, max_drop=0.0005, precision=("fp32", "int8")), out, Reporter(quiet=True))
    assert not list(out.glob("*.epb")) and not (out / "model.int8.onnx").exists()
    record = json.loads((out / "build.json").read_text())
    assert record["failed"]["stage"] == "quantize"
    assert sorted(p.name for p in out.glob("model.*")) == ["model.fp32.onnx"]
    # The page is there all the same, and says by how much.
    shown = ep.Comparison.from_json(json.loads((out / "comparison.json").read_text()))
    gates = {gate["name"]: gate for gate in shown.gates}
    assert gates["INT8 keeps mAP50-95"]["passed"] is False and "int8" in [row.name for row in shown.items]
    assert shown.gallery["last"] in ("int8", "int8-fp16") and "FAILED" in (out / "report.html").read_text().upper()
    with pytest.raises(InputError, match="not finished"):
        ep.Build.open(out)
    # The limit may change without doing the training again.
    monkeypatch.setattr(quantize, "to_int8", whole)
    record = build.run_build(
        options(fitted, max_drop=1.0, precision=("fp32", "fp16")), out, Reporter(quiet=True), resume=True
    )
    assert "failed" not in record and Bundle.open(out / "small.epb").trusted


def test_with_nms_inside_every_file_and_the_bundle_answer_in_rows(inputs, tmp_path):
    fitted, out = fitted_inputs(inputs, tmp_path), tmp_path / "out"
    record = build.run_build(options(fitted, epochs=1, nms=True), out, Reporter(quiet=True))
    bundle = Bundle.open(out / "small.epb")
    assert bundle.manifest.output == "end2end"
    for precision, entry in bundle.manifest.models.items():
        model = onnx.load_from_string(bundle.read(entry["payload"]))
        assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [1, 45, 6]  # all anchors
        assert record["models"][precision]["map50_95"] == entry["map50_95"] > 0
    pictures = load(fitted / "data" / "data.yaml")
    rows = compare.compare_items(items.open_item(str(out / "small.epb"), None), pictures, rounds=1).items
    found = {row.name: row for row in rows}
    assert set(found) == {f"small:{p}" for p in bundle.manifest.models}
    assert found["small:fp32"].map50_95 == pytest.approx(record["models"]["fp32"]["map50_95"])
    assert all(row.objects_found > 0 for row in rows)
    report = run.run_benchmark(bundle, runtime="ort", precision="fp32", seconds=0.2, warmup_seconds=0.2)
    assert report.accuracy.map50_95 == pytest.approx(bundle.manifest.evaluation["accuracy"]["fp32"]["map50_95"])
