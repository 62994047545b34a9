"""Tests of the report of a run: its signature, the host's figures, its remarks."""

import numpy as np
import pytest
from edgeprune_device import strict_json
from edgeprune_device.benchmark import run
from edgeprune_device.benchmark.options import BenchmarkOptions
from edgeprune_device.machine import preflight
from edgeprune_device.trust import keys
from edgeprune_device.vision.evaluation import EvaluationSet

from .small import QUICK, both


def test_report_is_signed_with_the_report_key(bundle):
    report = run.run_benchmark(bundle, BenchmarkOptions(runtime="null", **QUICK))
    signer = report.verify()
    assert keys.fingerprint(signer) == report.device["key_fingerprint"]
    assert bytes(signer) == bytes(keys.load_or_create("report").verify_key)
    assert keys.fingerprint(signer) not in keys.trusted()  # it signs reports, never bundles
    assert report.clock["boot_id"] and report.clock["boottime_s"] > 0


def test_host_can_read_the_report_whatever_text_the_machine_gives(bundle, tmp_path, monkeypatch, labelled_pictures):
    from edgeprune_device.runtimes import null

    folder = tmp_path / "a\nb\udcff" / ("x" * 250) / ("y" * 250)
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(labelled_pictures[0][1])
    monkeypatch.setattr(null.NullSession, "description", "\x1b[2J" + "long " * 1000)
    monkeypatch.setattr(null.NullSession, "warnings", ("\n" + "long " * 1000,) * 300)
    monkeypatch.setattr(preflight.Preflight, "warnings", lambda self: ["clock " * 1000] * 300)
    report = run.run_benchmark(bundle, BenchmarkOptions(runtime="null", source=str(folder), **QUICK))
    again = type(report).from_json(strict_json.loads(report.to_bytes(), "r"))
    assert again == report and again.verify() == report.verify()
    assert len(report.warnings) == len(report.verdict["reasons"]) == 100
    assert report.source["description"].startswith("images in ") and report.verdict["state"] == "invalid"


def test_delta_shows_a_worse_model(rebuilt, tmp_path, labelled_pictures):
    pytest.importorskip("onnxruntime")
    # The truth lists a third box that the model never sees.
    more = [(n, d, np.vstack([t, [0, 1, 1, 9, 9]])) for n, d, t in labelled_pictures]
    report = run.run_benchmark(rebuilt({"evaluation.zip": EvaluationSet.pack(more)}), BenchmarkOptions(**QUICK))
    assert report.accuracy.map50_95 < 0.9 and report.map50_95_delta == pytest.approx(report.accuracy.map50_95 - 1)


def test_host_figures_of_other_images_give_no_delta(rebuilt, manifest):
    pytest.importorskip("onnxruntime")
    model = {**manifest["models"]["fp32"], "pictures": 400}
    report = run.run_benchmark(rebuilt(models={"fp32": model}), BenchmarkOptions(**QUICK))
    assert report.map50_95_delta is None and any("accuracy not compared" in text for text in report.warnings)
    same = {**manifest["evaluation"], "accuracy": {"fp32": {"map50_95": 0.9}}}
    report = run.run_benchmark(rebuilt(models={"fp32": model}, evaluation=same), BenchmarkOptions(**QUICK))
    assert report.map50_95_delta == pytest.approx(0.1)


def test_int8_for_tensorrt_on_a_cpu_gives_a_warning(rebuilt, manifest):
    pytest.importorskip("onnxruntime")
    report = run.run_benchmark(
        rebuilt(**both(manifest, "jetson-orin")), BenchmarkOptions(precision="int8", with_accuracy=False, **QUICK)
    )
    assert any("made for TensorRT" in text for text in report.warnings) and report.accuracy is None
