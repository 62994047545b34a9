import itertools
import json
import time

import numpy as np
import pytest
from edgeprune_device import schema, strict_json
from edgeprune_device.benchmark import run
from edgeprune_device.errors import InputError, RuntimeUnavailable
from edgeprune_device.trust import keys
from edgeprune_device.vision.evaluation import EvaluationSet
from fakes import models

from .small import QUICK, both


def test_a_whole_run(bundle):
    pytest.importorskip("onnxruntime")
    jsonschema = pytest.importorskip("jsonschema")
    report = run.run_benchmark(bundle, threads=1, **QUICK)
    jsonschema.validate(json.loads(json.dumps(report.to_json())), schema.load("report"))
    assert list(report.stages) == ["decode", "pre", "infer", "post", "end_to_end"]
    assert report.precision == "fp32" and report.runtime["name"] == "ort" and report.runtime["threads"] == 1
    assert report.bundle["sha256"] == bundle.sha256 and report.bundle["trusted"]
    assert report.accuracy.map50_95 == pytest.approx(1) and report.map50_95_delta == pytest.approx(0)
    samples = {name: len(stage["samples_ns"]) for name, stage in report.stages.items()}
    assert len(set(samples.values())) == 1 and report.stages["infer"]["samples"] == samples["infer"] >= 1
    total = sum(sum(report.stages[name]["samples_ns"]) for name in ("decode", "pre", "infer", "post"))
    assert total <= sum(report.stages["end_to_end"]["samples_ns"])
    # The two rates are not the same thing.
    assert report.fps_end_to_end < report.fps_inference == pytest.approx(1e3 / report.stages["infer"]["p50_ms"])
    assert report.peak_rss_bytes > 1e7 and report.load_ms > 0


def test_timing_spins_and_the_report_says_so(bundle, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # OpenMP's: not that of what is timed here
    report = run.run_benchmark(bundle, runtime="ort", threads=2, with_accuracy=False, **QUICK)
    assert report.runtime["spinning"] is True
    assert ", 2 threads; they spin while they wait\n" in report.table()
    assert run.run_benchmark(bundle, runtime="ort", threads=1, with_accuracy=False, **QUICK).runtime["spinning"] is None
    assert run.run_benchmark(bundle, runtime="null", **QUICK).runtime["spinning"] is None


BOXES = [(20, 20, 16, 16, 0), (44, 40, 12, 20, 1)]  # what `labelled_pictures` show


def table_of(boxes, scores, rows=84):
    """A "detector" of 64 px whose output is the same rows for every picture, the brighter the surer."""
    constant, gain = np.zeros((1, rows, 6), np.float32), np.zeros((1, rows, 6), np.float32)
    for i, ((cx, cy, w, h, c), score) in enumerate(zip(boxes, scores)):
        constant[0, i] = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, 0, c
        gain[0, i, 4] = score
    nodes = [
        models.node("ReduceMean", ["images"], "mean", "/r", ("keepdims", 0)),
        models.node("Mul", ["mean", "gain"], "scores", "/m"),
        models.node("Add", ["scores", "constant"], "output0", "/o"),
    ]
    tensors = [models.raw("gain", gain), models.raw("constant", constant)]
    return models.model(nodes, tensors, 13, outputs=(("output0", (1, rows, 6)),))


def test_rows_of_eighty_classes_are_rows_because_the_manifest_says_so(rebuilt):
    """(1, 84, 6) would be six anchors of 80 classes, too."""
    pytest.importorskip("onnxruntime")
    model = table_of(BOXES, (0.9, 0.8))
    eighty = {"payloads": {"model.fp32.onnx": model}, "classes": [f"c{i}" for i in range(80)]}
    report = run.run_benchmark(rebuilt(**eighty, output="end2end"), runtime="ort", check=True, **QUICK)
    assert report.accuracy.map50_95 == pytest.approx(1) and report.map50_95_delta == pytest.approx(0)
    assert report.parity["anchors"] == 6 and report.parity["unmatched"] == 0 == report.parity["box_px"]
    null = run.run_benchmark(rebuilt(**eighty, output="end2end"), runtime="null", **QUICK)
    assert null.stages["post"]["samples"] > 0


@pytest.mark.parametrize("stated, classes", [("end2end", 2), ("raw", 3)])
@pytest.mark.parametrize("more", [{}, {"mode": "offline"}])
def test_an_output_that_contradicts_the_manifest_ends_the_run_in_one_line(rebuilt, stated, classes, more):
    pytest.importorskip("onnxruntime")
    bundle = rebuilt(output=stated, classes=[f"c{i}" for i in range(classes)])
    with pytest.raises(InputError, match=rf"shape \(1, 6, 84\), but it is stated to be {stated}") as caught:
        run.run_benchmark(bundle, runtime="ort", **more, **QUICK)
    assert "\n" not in str(caught.value)


def test_null_measures_the_harness_and_states_no_accuracy(bundle):
    report = run.run_benchmark(bundle, runtime="null", **QUICK)
    assert report.accuracy is None and report.map50_95_delta is None
    assert report.host_accuracy["map50_95"] == 1.0
    assert report.verdict["state"] == "invalid" and "harness" in report.verdict["reasons"][0]
    assert report.power is None and report.camera is None


def test_a_check_of_the_outputs(bundle, rebuilt, monkeypatch):
    pytest.importorskip("onnxruntime")
    jsonschema = pytest.importorskip("jsonschema")
    report = run.run_benchmark(bundle, runtime="ort", check=True, with_accuracy=False, **QUICK)
    jsonschema.validate(json.loads(json.dumps(report.to_json())), schema.load("report"))
    assert report.parity["pictures"] == 3 and report.parity["anchors"] == 6
    assert report.parity["box_px"] == report.parity["score"] == 0
    assert "parity      boxes within 0 px, scores within 0 of onnxruntime" in report.table()
    assert type(report).from_json(json.loads(json.dumps(report.to_json()))) == report
    unchecked = run.run_benchmark(bundle, runtime="ort", with_accuracy=False, **QUICK)
    assert unchecked.parity is None and "parity      not measured" in unchecked.table()
    assert not any("parity" in text for text in unchecked.warnings)
    null = run.run_benchmark(bundle, runtime="null", check=True, **QUICK)
    assert null.parity is None and "parity was not measured: runtime null runs no model" in null.warnings
    monkeypatch.setattr(run.parity, "measure", raises("onnxruntime is not installed"))
    report = run.run_benchmark(bundle, runtime="ort", check=True, with_accuracy=False, **QUICK)
    assert report.parity is None and "parity was not measured: onnxruntime is not installed" in report.warnings


def raises(words):
    def fail(*given):
        raise InputError(words)

    return fail


def test_the_report_is_signed_by_a_key_of_its_own(bundle):
    report = run.run_benchmark(bundle, runtime="null", **QUICK)
    signer = report.verify()
    assert keys.fingerprint(signer) == report.device["key_fingerprint"]
    assert bytes(signer) == bytes(keys.load_or_create("report").verify_key)
    assert keys.fingerprint(signer) not in keys.trusted()  # it signs reports, never bundles
    assert report.clock["boot_id"] and report.clock["boottime_s"] > 0


def test_sustained_is_single_for_minutes(bundle):
    report = run.run_benchmark(bundle, runtime="null", mode="sustained", seconds=0.6, warmup_seconds=0.05)
    assert report.mode == "sustained" and report.settings["seconds"] == 0.6
    assert report.drift["window_s"] == pytest.approx(0.2, rel=0.3)  # of 20 frames or more, on a busy machine too


def test_offline_does_more_than_one_frame_at_a_time(bundle, monkeypatch):
    from edgeprune_device.runtimes import null

    zeros, found = null.NullSession.infer, run.detections
    monkeypatch.setattr(null.NullSession, "infer", lambda self, x: (time.sleep(0.01), zeros(self, x))[1])
    monkeypatch.setattr(
        run, "detections", lambda *given, **more: (time.sleep(0.01), found(*given, **more))[1]
    )
    fps = {}
    for mode in ("single", "offline"):
        report = run.run_benchmark(bundle, runtime="null", mode=mode, seconds=0.8, warmup_seconds=0.1)
        fps[mode] = report.fps_end_to_end
        assert len(report.begins_ns) == report.stages["post"]["samples"] == report.stages["end_to_end"]["samples"]
    assert fps["offline"] > 1.3 * fps["single"]


def test_power_and_heat_of_a_board(bundle, tmp_path, monkeypatch):
    """From a recorded tree that stands still: the figures are its own."""
    jsonschema = pytest.importorskip("jsonschema")
    import sysfs as boards

    monkeypatch.setenv("EDGEPRUNE_SYSROOT", str(boards.write("jetson-orin-nx, JetPack 6", tmp_path / "board")))
    report = run.run_benchmark(bundle, runtime="null", seconds=1.5, warmup_seconds=0.1, idle_seconds=1.2)
    jsonschema.validate(json.loads(json.dumps(report.to_json())), schema.load("report"))
    assert report.power["idle_mw"] == report.power["load_mw"] == 5250 and report.power["whole_module"]
    assert report.power["mj_per_frame_gross"] == pytest.approx(5250 / report.fps_end_to_end, rel=0.05)
    assert report.power["mj_per_frame_net"] == 0
    assert report.board["l4t"] == "36.4.3" and report.thermal["gpu"]["max_c"] == report.thermal["gpu"]["start_c"]
    assert any("clocks may move" in reason for reason in report.verdict["reasons"])
    text = report.table()
    assert "Orin NX" in text and "5.25 W under load, idle 5.25 W" in text and "none (" in text
    assert max(map(len, text.splitlines())) <= 120


def test_an_interrupt_gives_a_report_of_what_was_measured(bundle, monkeypatch):
    from edgeprune_device.runtimes import null

    zeros, calls = null.NullSession.infer, itertools.count()

    def infer(self, x):
        if next(calls) == 20:  # the first of them warms up
            raise KeyboardInterrupt
        return zeros(self, x)

    monkeypatch.setattr(null.NullSession, "infer", infer)
    report = run.run_benchmark(bundle, runtime="null", seconds=600, warmup_seconds=0)
    assert report.interrupted and report.stages["infer"]["samples"] == 19
    assert "interrupted: shorter than what was asked for" in report.verdict["reasons"]


def test_an_interrupted_pipeline_has_as_many_samples_of_each_stage(bundle, monkeypatch):
    from edgeprune_device.runtimes import null

    found, calls = run.detections, itertools.count()

    def detections(*given, **more):
        if next(calls) == 20:
            raise KeyboardInterrupt  # reaches the pipeline when the next frame is through the network
        return found(*given, **more)

    monkeypatch.setattr(null.NullSession, "device_ms", {"h2d": 0.1, "gpu": 2.0, "d2h": 0.1})
    monkeypatch.setattr(run, "detections", detections)
    report = run.run_benchmark(bundle, runtime="null", mode="offline", seconds=60, warmup_seconds=0)
    assert report.interrupted and {stage["samples"] for stage in report.stages.values()} == {len(report.begins_ns)}


def test_an_interrupt_while_the_accuracy_is_measured_keeps_the_timings(bundle, monkeypatch):
    pytest.importorskip("onnxruntime")

    def evaluate(*given, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "evaluate", evaluate)
    report = run.run_benchmark(bundle, runtime="ort", check=True, **QUICK)
    assert report.interrupted and report.accuracy is None and report.parity is None
    assert report.stages["infer"]["samples"] >= 1 and "accuracy was not measured: interrupted" in report.warnings
    assert not any("shorter" in reason for reason in report.verdict["reasons"])


def test_whatever_a_machine_says_the_host_can_read_the_report(bundle, tmp_path, monkeypatch, labelled_pictures):
    from edgeprune_device.runtimes import null

    folder = tmp_path / "a\nb\udcff" / ("x" * 250) / ("y" * 250)
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(labelled_pictures[0][1])
    monkeypatch.setattr(null.NullSession, "description", "\x1b[2J" + "long " * 1000)
    monkeypatch.setattr(null.NullSession, "warnings", ("\n" + "long " * 1000,) * 300)
    monkeypatch.setattr(run.preflight.Preflight, "warnings", lambda self: ["clock " * 1000] * 300)
    report = run.run_benchmark(bundle, runtime="null", source=str(folder), **QUICK)
    again = type(report).from_json(strict_json.loads(report.to_bytes(), "r"))
    assert again == report and again.verify() == report.verify()
    assert len(report.warnings) == len(report.verdict["reasons"]) == 100
    assert report.source["description"].startswith("pictures in ") and report.verdict["state"] == "invalid"


def test_a_monitor_that_fails_says_why(bundle, monkeypatch):
    def enter(self):
        self.problem = "the monitor failed (it ended)"
        return self

    monkeypatch.setattr(run.probes.Monitor, "__enter__", enter)
    report = run.run_benchmark(bundle, runtime="null", **QUICK)
    assert report.series is None and "the monitor failed (it ended)" in " ".join(report.warnings)


def test_a_worse_model_shows_in_the_delta(rebuilt, tmp_path, labelled_pictures):
    pytest.importorskip("onnxruntime")
    # The truth lists a third box that the model never sees.
    more = [(n, d, np.vstack([t, [0, 1, 1, 9, 9]])) for n, d, t in labelled_pictures]
    report = run.run_benchmark(rebuilt({"evaluation.zip": EvaluationSet.pack(more)}), **QUICK)
    assert report.accuracy.map50_95 < 0.9 and report.map50_95_delta == pytest.approx(report.accuracy.map50_95 - 1)


def test_host_figures_of_other_pictures_give_no_delta(rebuilt, manifest):
    pytest.importorskip("onnxruntime")
    model = {**manifest["models"]["fp32"], "pictures": 400}
    report = run.run_benchmark(rebuilt(models={"fp32": model}), **QUICK)
    assert report.map50_95_delta is None and any("no delta" in text for text in report.warnings)
    same = {**manifest["evaluation"], "accuracy": {"fp32": {"map50_95": 0.9}}}
    report = run.run_benchmark(rebuilt(models={"fp32": model}, evaluation=same), **QUICK)
    assert report.map50_95_delta == pytest.approx(0.1)


def test_int8_of_tensorrt_on_a_cpu_is_warned_of(rebuilt, manifest):
    pytest.importorskip("onnxruntime")
    report = run.run_benchmark(rebuilt(**both(manifest, "jetson-orin")), precision="int8", with_accuracy=False, **QUICK)
    assert any("TensorRT's form" in text for text in report.warnings) and report.accuracy is None


def test_a_precision_that_is_not_there_says_why(bundle):
    with pytest.raises(InputError, match=r"no int8 model \(the accuracy gate failed\); it has fp32"):
        run.run_benchmark(bundle, runtime="null", precision="int8")
    with pytest.raises(InputError, match="no fp16 model; it has fp32"):
        run.run_benchmark(bundle, runtime="null", precision="fp16")
    with pytest.raises(RuntimeUnavailable):
        run.run_benchmark(bundle, runtime="tpu")


def test_bundles_without_what_is_needed(rebuilt):
    with pytest.raises(InputError, match="carries no model"):
        run.run_benchmark(rebuilt(models={}), runtime="null")
    with pytest.raises(InputError, match="no evaluation pictures"):
        run.run_benchmark(rebuilt(evaluation=None), runtime="null")
    with pytest.raises(InputError, match="holds no picture"):
        run.run_benchmark(rebuilt({"evaluation.zip": EvaluationSet.pack([])}), runtime="null")
    with pytest.raises(InputError, match=r"evaluation\.zip: not an evaluation set"):
        run.run_benchmark(rebuilt({"evaluation.zip": b"zip?"}), runtime="null")


def test_a_model_of_other_classes_is_refused(rebuilt):
    pytest.importorskip("onnxruntime")
    with pytest.raises(InputError, match="check the class list"):
        run.run_benchmark(rebuilt(classes=["only one"]), **QUICK)
