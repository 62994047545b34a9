import json

import numpy as np
import pytest
from edgeprune_device import benchmark, keys, schema
from edgeprune_device.bundle import Bundle
from edgeprune_device.environment import Environment
from edgeprune_device.errors import InputError, RuntimeUnavailable
from edgeprune_device.evaluation import EvaluationSet

QUICK = {"seconds": 0.05, "warmup_seconds": 0.05}


@pytest.fixture
def rebuilt(tmp_path, manifest, tiny_onnx, labelled_pictures):
    """A bundle with parts of the manifest changed."""

    def make(payloads=None, **change):
        parts = {"model.fp32.onnx": tiny_onnx, "evaluation.zip": EvaluationSet.pack(labelled_pictures)}
        parts.update(payloads or {})
        return Bundle.write(tmp_path / "other.epb", {**manifest, **change}, parts, keys.load_or_create())

    return make


def test_a_whole_run(bundle):
    pytest.importorskip("onnxruntime")
    jsonschema = pytest.importorskip("jsonschema")
    report = benchmark.run(bundle, threads=1, **QUICK)
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


def test_null_measures_the_harness_and_states_no_accuracy(bundle):
    report = benchmark.run(bundle, runtime="null", **QUICK)
    assert report.accuracy is None and report.map50_95_delta is None
    assert report.host_accuracy["map50_95"] == 1.0
    assert any("harness" in text for text in report.warnings)


def test_a_check_of_the_outputs(bundle, rebuilt, monkeypatch):
    pytest.importorskip("onnxruntime")
    jsonschema = pytest.importorskip("jsonschema")
    report = benchmark.run(bundle, runtime="ort", check=True, with_accuracy=False, **QUICK)
    jsonschema.validate(json.loads(json.dumps(report.to_json())), schema.load("report"))
    assert report.parity["pictures"] == 3 and report.parity["anchors"] == 6
    assert report.parity["box_px"] == report.parity["score"] == 0
    assert "parity      boxes within 0 px, scores within 0 of onnxruntime" in report.table()
    assert type(report).from_json(json.loads(json.dumps(report.to_json()))) == report
    unchecked = benchmark.run(bundle, runtime="ort", with_accuracy=False, **QUICK)
    assert unchecked.parity is None and "parity      not measured" in unchecked.table()
    assert not any("parity" in text for text in unchecked.warnings)
    null = benchmark.run(bundle, runtime="null", check=True, **QUICK)
    assert null.parity is None and "parity was not measured: runtime null runs no model" in null.warnings
    monkeypatch.setattr(benchmark.parity, "measure", raises("onnxruntime is not installed"))
    report = benchmark.run(bundle, runtime="ort", check=True, with_accuracy=False, **QUICK)
    assert report.parity is None and "parity was not measured: onnxruntime is not installed" in report.warnings


def raises(words):
    def fail(*given):
        raise InputError(words)

    return fail


def test_a_report_from_before_parity_is_read(bundle):
    data = benchmark.run(bundle, runtime="null", **QUICK).to_json()
    del data["parity"]
    assert benchmark.BenchReport.from_json(json.loads(json.dumps(data))).parity is None


def test_a_worse_model_shows_in_the_delta(rebuilt, tmp_path, labelled_pictures):
    pytest.importorskip("onnxruntime")
    # The truth lists a third box that the model never sees.
    more = [(n, d, np.vstack([t, [0, 1, 1, 9, 9]])) for n, d, t in labelled_pictures]
    report = benchmark.run(rebuilt({"evaluation.zip": EvaluationSet.pack(more)}), **QUICK)
    assert report.accuracy.map50_95 < 0.9 and report.map50_95_delta == pytest.approx(report.accuracy.map50_95 - 1)


def test_host_figures_of_other_pictures_give_no_delta(rebuilt, manifest):
    pytest.importorskip("onnxruntime")
    model = {**manifest["models"]["fp32"], "pictures": 400}
    report = benchmark.run(rebuilt(models={"fp32": model}), **QUICK)
    assert report.map50_95_delta is None and any("no delta" in text for text in report.warnings)
    same = {**manifest["evaluation"], "accuracy": {"fp32": {"map50_95": 0.9}}}
    report = benchmark.run(rebuilt(models={"fp32": model}, evaluation=same), **QUICK)
    assert report.map50_95_delta == pytest.approx(0.1)


def both(manifest, target):
    entry = manifest["models"]["fp32"]
    return {"models": {"int8": entry, "fp32": entry}, "target": target}


@pytest.mark.parametrize("bits, saturates, expected", [(8, True, "fp32"), (8, False, "int8"), (7, True, "int8")])
def test_auto_leaves_out_weights_that_would_saturate(rebuilt, manifest, monkeypatch, bits, saturates, expected):
    monkeypatch.setattr(Environment, "saturates", saturates)
    entry = {**manifest["models"]["fp32"], "weight_bits": bits}
    other = rebuilt(target="cpu", models={**manifest["models"], "int8": entry})
    assert benchmark.choose_precision(other.manifest, "ort") == expected
    pytest.importorskip("onnxruntime")
    report = benchmark.run(other, runtime="ort", precision="int8", with_accuracy=False, **QUICK)
    assert any("no VNNI" in text for text in report.warnings) == (bits == 8 and saturates)


@pytest.mark.parametrize("target, expected", [("cpu", "int8"), ("jetson-orin", "fp32"), ("my-own-drone", "fp32")])
def test_auto_takes_int8_only_where_it_was_made_for_a_cpu(rebuilt, manifest, monkeypatch, target, expected):
    monkeypatch.setattr(Environment, "saturates", False)
    bundle = rebuilt(**both(manifest, target))
    assert benchmark.choose_precision(bundle.manifest, "ort") == expected
    assert benchmark.choose_precision(bundle.manifest, "ort", "int8") == "int8"


def test_int8_of_tensorrt_on_a_cpu_is_warned_of(rebuilt, manifest):
    pytest.importorskip("onnxruntime")
    report = benchmark.run(rebuilt(**both(manifest, "jetson-orin")), precision="int8", with_accuracy=False, **QUICK)
    assert any("TensorRT's form" in text for text in report.warnings) and report.accuracy is None


def test_a_precision_that_is_not_there_says_why(bundle):
    with pytest.raises(InputError, match=r"no int8 model \(the accuracy gate failed\); it has fp32"):
        benchmark.run(bundle, runtime="null", precision="int8")
    with pytest.raises(InputError, match="no fp16 model; it has fp32"):
        benchmark.run(bundle, runtime="null", precision="fp16")
    with pytest.raises(RuntimeUnavailable):
        benchmark.run(bundle, runtime="tpu")


def test_bundles_without_what_is_needed(rebuilt):
    with pytest.raises(InputError, match="carries no model"):
        benchmark.run(rebuilt(models={}), runtime="null")
    with pytest.raises(InputError, match="no evaluation pictures"):
        benchmark.run(rebuilt(evaluation=None), runtime="null")
    with pytest.raises(InputError, match="holds no picture"):
        benchmark.run(rebuilt({"evaluation.zip": EvaluationSet.pack([])}), runtime="null")
    with pytest.raises(InputError, match=r"evaluation\.zip: not an evaluation set"):
        benchmark.run(rebuilt({"evaluation.zip": b"zip?"}), runtime="null")


def test_a_model_of_other_classes_is_refused(rebuilt):
    pytest.importorskip("onnxruntime")
    with pytest.raises(InputError, match="check the class list"):
        benchmark.run(rebuilt(classes=["only one"]), **QUICK)
