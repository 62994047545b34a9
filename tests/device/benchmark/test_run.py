import itertools
import json
import time

import numpy as np
import pytest
from edgeprune_device import schema
from edgeprune_device.benchmark import run
from edgeprune_device.benchmark.options import BenchmarkOptions
from edgeprune_device.errors import InputError
from fakes import models

from .small import QUICK


def test_complete_run(bundle):
    pytest.importorskip("onnxruntime")
    jsonschema = pytest.importorskip("jsonschema")
    report = run.run_benchmark(bundle, BenchmarkOptions(runtime="ort", threads=1, **QUICK))
    jsonschema.validate(json.loads(json.dumps(report.to_json())), schema.load("report"))
    assert list(report.stages) == ["decode", "pre", "infer", "post", "end_to_end"]
    assert report.precision == "fp32" and report.runtime["name"] == "ort" and report.runtime["threads"] == 1
    assert report.bundle["sha256"] == bundle.sha256 and report.bundle["trusted"]
    assert report.accuracy.map50_95 == pytest.approx(1) and report.map50_95_delta == pytest.approx(0)
    samples = {name: len(stage["samples_ns"]) for name, stage in report.stages.items()}
    assert len(set(samples.values())) == 1 and report.stages["infer"]["samples"] == samples["infer"] >= 1
    total = sum(sum(report.stages[name]["samples_ns"]) for name in ("decode", "pre", "infer", "post"))
    assert total <= sum(report.stages["end_to_end"]["samples_ns"])
    # The two rates are different quantities.
    assert report.fps_end_to_end < report.fps_inference == pytest.approx(1e3 / report.stages["infer"]["p50_ms"])
    assert report.peak_rss_bytes > 1e7 and report.load_ms > 0


def test_threads_spin_while_timing_and_the_report_states_it(bundle, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # OpenMP's policy does not apply to the timed runtime
    report = run.run_benchmark(bundle, BenchmarkOptions(runtime="ort", threads=2, with_accuracy=False, **QUICK))
    assert report.runtime["spinning"] is True
    assert ", 2 threads, spinning\n" in report.table()
    assert (
        run.run_benchmark(bundle, BenchmarkOptions(runtime="ort", threads=1, with_accuracy=False, **QUICK)).runtime[
            "spinning"
        ]
        is None
    )
    assert run.run_benchmark(bundle, BenchmarkOptions(runtime="null", **QUICK)).runtime["spinning"] is None


BOXES = [(20, 20, 16, 16, 0), (44, 40, 12, 20, 1)]  # the content of `labelled_pictures`


def table_of(boxes, scores, rows=84):
    """A "detector" of 64 px with the same rows for every image; brighter images score higher."""
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


def test_manifest_decides_whether_an_output_is_rows(rebuilt):
    """(1, 84, 6) could also be six anchors of 80 classes."""
    pytest.importorskip("onnxruntime")
    model = table_of(BOXES, (0.9, 0.8))
    eighty = {"payloads": {"model.fp32.onnx": model}, "classes": [f"c{i}" for i in range(80)]}
    report = run.run_benchmark(
        rebuilt(**eighty, output="end2end"), BenchmarkOptions(runtime="ort", check=True, **QUICK)
    )
    assert report.accuracy.map50_95 == pytest.approx(1) and report.map50_95_delta == pytest.approx(0)
    assert report.parity["anchors"] == 6 and report.parity["unmatched"] == 0 == report.parity["box_px"]
    null = run.run_benchmark(rebuilt(**eighty, output="end2end"), BenchmarkOptions(runtime="null", **QUICK))
    assert null.stages["post"]["samples"] > 0


@pytest.mark.parametrize("stated, classes", [("end2end", 2), ("raw", 3)])
@pytest.mark.parametrize("more", [{}, {"mode": "offline"}])
def test_output_that_contradicts_the_manifest_is_one_line(rebuilt, stated, classes, more):
    pytest.importorskip("onnxruntime")
    bundle = rebuilt(output=stated, classes=[f"c{i}" for i in range(classes)])
    with pytest.raises(InputError, match=rf"wrong output shape for the kind {stated} \(found \(1, 6, 84\)") as caught:
        run.run_benchmark(bundle, BenchmarkOptions(runtime="ort", **more, **QUICK))
    assert "\n" not in str(caught.value)


def test_null_measures_the_benchmark_itself_and_no_accuracy(bundle):
    report = run.run_benchmark(bundle, BenchmarkOptions(runtime="null", **QUICK))
    assert report.accuracy is None and report.map50_95_delta is None
    assert report.host_accuracy["map50_95"] == 1.0
    assert report.verdict["state"] == "invalid" and "runs no model" in report.verdict["reasons"][0]
    assert report.power is None and report.camera is None


def test_check_compares_the_outputs(bundle, rebuilt, monkeypatch):
    pytest.importorskip("onnxruntime")
    jsonschema = pytest.importorskip("jsonschema")
    report = run.run_benchmark(bundle, BenchmarkOptions(runtime="ort", check=True, with_accuracy=False, **QUICK))
    jsonschema.validate(json.loads(json.dumps(report.to_json())), schema.load("report"))
    assert report.parity["pictures"] == 3 and report.parity["anchors"] == 6
    assert report.parity["box_px"] == report.parity["score"] == 0
    assert "parity      boxes within 0 px, scores within 0 of onnxruntime" in report.table()
    assert type(report).from_json(json.loads(json.dumps(report.to_json()))) == report
    unchecked = run.run_benchmark(bundle, BenchmarkOptions(runtime="ort", with_accuracy=False, **QUICK))
    assert unchecked.parity is None and "parity      not measured" in unchecked.table()
    assert not any("parity" in text for text in unchecked.warnings)
    null = run.run_benchmark(bundle, BenchmarkOptions(runtime="null", check=True, **QUICK))
    assert null.parity is None and "parity was not measured: runtime null runs no model" in null.warnings
    monkeypatch.setattr(run.parity, "measure", raises("onnxruntime is not installed"))
    report = run.run_benchmark(bundle, BenchmarkOptions(runtime="ort", check=True, with_accuracy=False, **QUICK))
    assert report.parity is None and "parity was not measured: onnxruntime is not installed" in report.warnings


def raises(words):
    def fail(*given):
        raise InputError(words)

    return fail


def test_sustained_is_single_for_minutes(bundle):
    report = run.run_benchmark(
        bundle, BenchmarkOptions(runtime="null", mode="sustained", seconds=0.6, warmup_seconds=0.05)
    )
    assert report.mode == "sustained" and report.settings["seconds"] == 0.6
    assert report.drift["window_s"] == pytest.approx(0.2, rel=0.3)  # at least 20 frames, also on a busy machine


def test_offline_processes_several_frames_at_once(bundle, monkeypatch):
    from edgeprune_device.runtimes import null

    task, zeros = type(run.tasks.get("detect")), null.NullSession.infer
    original = task.detections
    monkeypatch.setattr(null.NullSession, "infer", lambda self, x: (time.sleep(0.01), zeros(self, x))[1])
    monkeypatch.setattr(task, "detections", lambda *given, **more: (time.sleep(0.01), original(*given, **more))[1])
    fps = {}
    for mode in ("single", "offline"):
        report = run.run_benchmark(bundle, BenchmarkOptions(runtime="null", mode=mode, seconds=0.8, warmup_seconds=0.1))
        fps[mode] = report.fps_end_to_end
        assert len(report.begins_ns) == report.stages["post"]["samples"] == report.stages["end_to_end"]["samples"]
    assert fps["offline"] > 1.3 * fps["single"]


def test_power_and_temperature_of_a_board(bundle, tmp_path, monkeypatch):
    """Uses a recorded tree with constant readings."""
    jsonschema = pytest.importorskip("jsonschema")
    import sysfs as boards

    monkeypatch.setenv("EDGEPRUNE_SYSROOT", str(boards.write("jetson-orin-nx, JetPack 6", tmp_path / "board")))
    report = run.run_benchmark(
        bundle, BenchmarkOptions(runtime="null", seconds=1.5, warmup_seconds=0.1, idle_seconds=1.2)
    )
    jsonschema.validate(json.loads(json.dumps(report.to_json())), schema.load("report"))
    assert report.power["idle_mw"] == report.power["load_mw"] == 5250 and report.power["whole_module"]
    assert report.power["mj_per_frame_gross"] == pytest.approx(5250 / report.fps_end_to_end, rel=0.05)
    assert report.power["mj_per_frame_net"] == 0
    assert report.board["l4t"] == "36.4.3" and report.thermal["gpu"]["max_c"] == report.thermal["gpu"]["start_c"]
    assert any("clocks are not locked" in reason for reason in report.verdict["reasons"])
    text = report.table()
    assert "Orin NX" in text and "5.25 W under load, idle 5.25 W" in text and "none (" in text
    assert max(map(len, text.splitlines())) <= 120


def test_interrupted_run_reports_the_measured_frames(bundle, monkeypatch):
    from edgeprune_device.runtimes import null

    zeros, calls = null.NullSession.infer, itertools.count()

    def infer(self, x):
        if next(calls) == 20:  # the first call is part of the warm-up
            raise KeyboardInterrupt
        return zeros(self, x)

    monkeypatch.setattr(null.NullSession, "infer", infer)
    report = run.run_benchmark(bundle, BenchmarkOptions(runtime="null", seconds=600, warmup_seconds=0))
    assert report.interrupted and report.stages["infer"]["samples"] == 19
    assert (
        "the run was interrupted, so it is shorter than requested; measure again until the end"
        in report.verdict["reasons"]
    )


def test_interrupted_pipeline_has_equally_many_samples_of_each_stage(bundle, monkeypatch):
    from edgeprune_device.runtimes import null

    task, calls = type(run.tasks.get("detect")), itertools.count()
    original = task.detections

    def detections(*given, **more):
        if next(calls) == 20:
            raise KeyboardInterrupt  # reaches the pipeline after the next frame's inference
        return original(*given, **more)

    monkeypatch.setattr(null.NullSession, "times_device", True)
    monkeypatch.setattr(null.NullSession, "device_ms", {"h2d": 0.1, "gpu": 2.0, "d2h": 0.1})
    monkeypatch.setattr(task, "detections", detections)
    report = run.run_benchmark(bundle, BenchmarkOptions(runtime="null", mode="offline", seconds=60, warmup_seconds=0))
    assert report.interrupted and {stage["samples"] for stage in report.stages.values()} == {len(report.begins_ns)}


def test_interrupt_during_the_accuracy_keeps_the_timings(bundle, monkeypatch):
    pytest.importorskip("onnxruntime")

    def evaluate(*given, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "evaluate", evaluate)
    report = run.run_benchmark(bundle, BenchmarkOptions(runtime="ort", check=True, **QUICK))
    assert report.interrupted and report.accuracy is None and report.parity is None
    assert report.stages["infer"]["samples"] >= 1 and "accuracy was not measured: interrupted" in report.warnings
    assert not any("shorter" in reason for reason in report.verdict["reasons"])


def test_report_gives_the_reason_of_a_failed_monitor(bundle, monkeypatch):
    def enter(self):
        self.problem = "the sensor monitor failed (its process ended)"
        return self

    monkeypatch.setattr(run.probes.Monitor, "__enter__", enter)
    report = run.run_benchmark(bundle, BenchmarkOptions(runtime="null", **QUICK))
    assert report.series is None and "the sensor monitor failed (its process ended)" in " ".join(report.warnings)


def test_model_with_other_classes_is_refused(rebuilt):
    pytest.importorskip("onnxruntime")
    with pytest.raises(InputError, match="check the class list"):
        run.run_benchmark(rebuilt(classes=["only one"]), BenchmarkOptions(**QUICK))
