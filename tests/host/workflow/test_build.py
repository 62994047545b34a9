"""build: from a checkpoint and images to a signed bundle, with interruptions, resumption and refusals."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from edgeprune_device.benchmark import run
from edgeprune_device.benchmark.options import BenchmarkOptions
from edgeprune_device.errors import GateError, InputError
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision.evaluation import EvaluationSet

import edgeprune as ep
from edgeprune import quantize
from edgeprune.comparison import compare, items
from edgeprune.console.progress import Reporter
from edgeprune.data.dataset import load
from edgeprune.exporting import device_variant
from edgeprune.model import checkpoint
from edgeprune.workflow import build, record, resume
from edgeprune.workflow.job import Job

from .. import forked
from ..builds import RUN, fitted_inputs, request

STAGES = ["baseline", "plan", "prune", "finetune", "export", "quantize", "engine", "pack", "page"]


@pytest.fixture(scope="module")
def built(inputs):
    out = inputs / "built"
    return build.run_build(request(inputs), out, Reporter(quiet=True)), out


def test_a_build_writes_the_documented_files(built):
    record, out = built
    assert {p.name for p in out.iterdir()} == {
        "plan.json", "pruned.pt", "tuned.pt", "model.fp32.onnx", "model.fp16.onnx", "model.int8.onnx",
        "model.int8-fp16.onnx", "small.epb", "build.json", "report.html", "comparison.json",
        "model.fp32.device.onnx", "model.fp16.device.onnx", "model.int8.device.onnx", "model.int8-fp16.device.onnx",
    }  # fmt: skip
    assert json.loads((out / "build.json").read_text()) == record
    assert [s["name"] for s in record["stages"]] == STAGES
    assert all(s["seconds"] >= 0 for s in record["stages"])
    assert list(record["models"]) == ["original", "pruned", "tuned", "fp32", "fp16", "int8", "int8-fp16"]
    for entry in record["models"].values():
        assert {"path", "parameters", "macs", "channels", "size_bytes", "map50", "map50_95", "latency_ms"} <= set(entry)
    assert len(record["inputs"]["weights_sha256"]) == 64


def test_recorded_figures_match_the_files(built):
    record, out = built
    for name in ("pruned", "tuned"):
        entry, model = record["models"][name], checkpoint.load(out / f"{name}.pt").model
        assert entry["parameters"] == sum(p.numel() for p in model.parameters())
        assert entry["size_bytes"] == (out / f"{name}.pt").stat().st_size
        assert entry["latency_ms"] is None  # .pt files are not timed
    assert record["models"]["tuned"]["parameters"] == record["models"]["pruned"]["parameters"]
    original = record["models"]["original"]
    assert record["models"]["pruned"]["parameters"] < 0.85 * original["parameters"]
    assert record["models"]["pruned"]["macs"] <= 0.78 * original["macs"]
    assert record["models"]["int8-fp16"]["latency_ms"] is None
    plan = json.loads((out / "plan.json").read_text())
    assert abs(plan["removed"] / plan["prunable"] - 0.2) < 0.03


def test_auto_selects_energy_with_images(built):
    done = next(s for s in built[0]["stages"] if s["name"] == "plan")
    assert done["criterion"] == "energy"


def test_the_bundle_holds_the_files_and_their_figures(built):
    record, out = built
    bundle = Bundle.open(out / "small.epb")
    assert bundle.trusted
    for precision in ("fp32", "fp16", "int8", "int8-fp16"):
        payload = bundle.read(bundle.manifest.models[precision]["payload"])
        assert payload == (out / f"model.{precision}.device.onnx").read_bytes()
        assert payload == device_variant.of(onnx.load(out / f"model.{precision}.onnx")).SerializeToString()
        assert bundle.manifest.models[precision]["map50_95"] == record["models"][precision]["map50_95"]
    pictures = EvaluationSet.read(bundle.read("evaluation.zip"))
    assert len(pictures) == 4 and bundle.manifest.evaluation["boxes"] == pictures.boxes
    assert bundle.manifest.lineage["tuned"]["parameters"] == record["models"]["tuned"]["parameters"]
    opsets = {p: m["opset"] for p, m in bundle.manifest.models.items()}
    assert opsets["int8"] == 17 and opsets["int8-fp16"] >= 19
    assert all(e["payload"] is None and e["reason"] for e in bundle.manifest.engines.values())


def test_a_build_of_an_earlier_version_continues_with_its_stock_files(built, inputs, tmp_path):
    """Its files were timed and judged without variants, so they are packed as they are."""
    out = tmp_path / "old"
    shutil.copytree(built[1], out)
    old = json.loads((out / "build.json").read_text())
    old["stages"] = old["stages"][: STAGES.index("engine")]
    for variant in out.glob("*.device.onnx"):
        variant.unlink()
        old["stages"][-1]["files"].pop(variant.name)
    for entry in old["models"].values():
        entry.pop("variant", None)
    del old["inputs"]["options"]["input"]
    (out / "build.json").write_text(json.dumps(old))
    build.run_build(request(inputs), out, Reporter(quiet=True), resume=True)
    bundle = Bundle.open(out / "small.epb")
    assert "layout" not in bundle.manifest.to_json()
    assert bundle.read("model.int8.onnx") == (out / "model.int8.onnx").read_bytes()


def test_bench_agrees_with_the_host_on_a_built_bundle(built, tmp_path):
    _, out = built
    done = subprocess.run(
        [sys.executable, "-m", "edgeprune", "bench", str(out / "small.epb"), "--precision", "fp32", "--threads", "1",
         "--seconds", "1", "--warmup", "1", "--report", str(tmp_path / "report.json"), "--max-drop", "0.001"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "end to end" in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["accuracy"]


def test_two_steps_with_distillation_meet_the_budget_and_resume(inputs, tmp_path):
    """Each step prunes and fine-tunes. Together they meet the budget; a resumed second step starts from the first."""
    asked = request(inputs, budget="macs 0.6", steps=2, distill=True, precision=("fp32",))
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


def test_resuming_a_finished_build_changes_nothing(built, inputs):
    record, out = built
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.name != "build.json"}
    assert build.run_build(request(inputs), out, Reporter(quiet=True), resume=True) == record
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.name != "build.json"} == before


def test_a_changed_gallery_size_re_runs_only_the_page(built, inputs, tmp_path):
    """A finished build has deleted its detections, so the page stage evaluates the models again."""
    out = tmp_path / "copy"
    shutil.copytree(built[1], out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    record = build.run_build(request(inputs, pictures=2), out, Reporter(quiet=True), resume=True)
    changed = {p.name for p in out.iterdir() if p.read_bytes() != before[p.name]}
    assert changed == {"report.html", "comparison.json", "build.json"}
    assert record["stages"][:-1] == built[0]["stages"][:-1]
    shown, first = (ep.Build.open(folder).comparison.gallery["pictures"] for folder in (out, built[1]))
    assert shown == first[:2]
    # A page stage that is killed when it runs again is not recorded as done.
    (out / "report.html").unlink()
    with pytest.raises(RuntimeError, match="killed"), pytest.MonkeyPatch.context() as patch:
        killed = lambda job, progress: (_ for _ in ()).throw(RuntimeError("killed"))  # noqa: E731
        patch.setattr("edgeprune.workflow.stages.page", killed)
        build.run_build(request(inputs, pictures=2), out, Reporter(quiet=True), resume=True)
    with pytest.raises(InputError, match="not finished"):
        ep.Build.open(out)


def test_resume_refuses_another_build_and_a_changed_budget(built, inputs):
    _, out = built
    with pytest.raises(InputError, match="contains a build"):
        build.run_build(request(inputs), out, Reporter(quiet=True))
    with pytest.raises(InputError, match=r"changed since the build started: ratio\)"):
        build.run_build(request(inputs, budget="ratio 0.3"), out, Reporter(quiet=True), resume=True)


def test_the_page_shows_the_recorded_figures(built):
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


def test_the_page_names_the_layers_not_in_int8(built):
    """The page reads them from the ladder's record, and has no such line if there is no INT8 file."""
    from edgeprune.quantize.ladder import Ladder
    from edgeprune.quantize.sensitivity import LayerSensitivity

    record, out = json.loads(json.dumps(built[0])), built[1]
    ladder = Ladder((LayerSensitivity("model.2.cv2.conv", 0.1, 0.02),), (0, 1))
    stages_ = {stage["name"]: stage for stage in record["stages"]}
    stages_["quantize"]["int8"]["rescued"] = ladder.to_json(1)
    shown = compared(record, out)
    assert shown.more["rescued"] == ["model.2.cv2.conv"] and "model.2.cv2.conv</dd>" in shown.html()
    del stages_["quantize"]["int8"]
    assert "Layer fallback" not in compared(record, out).html()


def compared(built_record, out):
    return record.compared(built_record, out, ("a", "b", "c"), None, None)


def test_a_changed_file_re_runs_its_stage_and_all_later_ones(built, inputs, tmp_path):
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(built[1], out)
    (out / "model.fp16.onnx").write_bytes(b"damaged")
    job = Job(request(inputs), out, Reporter(quiet=True))
    record = resume.begin(job, resume=True)
    assert [s["name"] for s in record["stages"]] == STAGES[:5]
    assert not (out / "small.epb").exists(), "a bundle of outdated files must not be delivered"
    assert set(record["models"]) == {"original", "pruned", "tuned", "fp32"}


def test_batch_may_change_until_fine_tuning_is_done(built, inputs, tmp_path):
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(built[1], out)
    job = Job(request(inputs, batch=2), out, Reporter(quiet=True))
    with pytest.raises(InputError, match=r"changed since the build started: batch\)"):
        resume.begin(job, resume=True)
    (out / "tuned.pt").unlink()
    resume.begin(job, resume=True)  # the record lists finetune as done, but its file is missing


def test_a_second_build_in_the_same_folder_is_refused(inputs, tmp_path):
    with build._locked(tmp_path), pytest.raises(InputError, match="another build is running"):
        build.run_build(request(inputs), tmp_path, Reporter(quiet=True))


def test_a_build_killed_in_every_long_stage_resumes_to_a_complete_bundle(inputs, tmp_path):
    """kill -9 at the start of a stage keeps the finished stages, and the resumed build completes."""
    out = tmp_path / "out"
    words = (json.dumps(request(inputs).to_json()), out)
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


def test_a_failed_gate_writes_no_bundle_but_a_page_with_the_figures(inputs, tmp_path, monkeypatch):
    """The INT8 file has only zero weights, as after a broken calibration."""
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
    (out / "model.int8.onnx").write_text("from a build that was killed while it timed its files")
    with pytest.raises(GateError, match=r"int8 loses 0\.\d+ mAP50-95 .* max_drop=0.0005"):
        build.run_build(request(fitted, max_drop=0.0005, precision=("fp32", "int8")), out, Reporter(quiet=True))
    assert not list(out.glob("*.epb")) and not (out / "model.int8.onnx").exists()
    record = json.loads((out / "build.json").read_text())
    assert record["failed"]["stage"] == "quantize"
    assert sorted(p.name for p in out.glob("model.*")) == ["model.fp32.onnx"]
    # The page exists and shows the size of the failure.
    shown = ep.Comparison.from_json(json.loads((out / "comparison.json").read_text()))
    gates = {gate["name"]: gate for gate in shown.gates}
    assert gates["INT8 keeps mAP50-95"]["passed"] is False and "int8" in [row.name for row in shown.items]
    assert shown.gallery["last"] in ("int8", "int8-fp16") and "FAILED" in (out / "report.html").read_text().upper()
    with pytest.raises(InputError, match="not finished"):
        ep.Build.open(out)
    # A changed limit does not repeat the training.
    monkeypatch.setattr(quantize, "to_int8", whole)
    record = build.run_build(
        request(fitted, max_drop=1.0, precision=("fp32", "fp16")), out, Reporter(quiet=True), resume=True
    )
    assert "failed" not in record and Bundle.open(out / "small.epb").trusted


def test_nms_gives_every_file_and_the_bundle_the_row_format(inputs, tmp_path):
    fitted, out = fitted_inputs(inputs, tmp_path), tmp_path / "out"
    record = build.run_build(request(fitted, epochs=1, nms=True), out, Reporter(quiet=True))
    bundle = Bundle.open(out / "small.epb")
    assert bundle.manifest.output == "end2end"
    for precision, entry in bundle.manifest.models.items():
        model = onnx.load_from_string(bundle.read(entry["payload"]))
        assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [1, 45, 6]  # all anchors
        assert record["models"][precision]["map50_95"] == entry["map50_95"] > 0
    pictures = load(fitted / "data" / "data.yaml")
    rows = compare.compare_items(items.open_item(str(out / "small.epb"), None), pictures, rounds=1).items
    by_name = {row.name: row for row in rows}
    assert set(by_name) == {f"small:{p}" for p in bundle.manifest.models}
    assert by_name["small:fp32"].map50_95 == pytest.approx(record["models"]["fp32"]["map50_95"])
    assert all(row.objects_found > 0 for row in rows)
    report = run.run_benchmark(
        bundle, BenchmarkOptions(runtime="ort", precision="fp32", seconds=0.2, warmup_seconds=0.2)
    )
    assert report.accuracy.map50_95 == pytest.approx(bundle.manifest.evaluation["accuracy"]["fp32"]["map50_95"])
