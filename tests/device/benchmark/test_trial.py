"""The choice between ONNX Runtime and OpenVINO, where both are installed."""

import json

import pytest
from edgeprune_device import layouts, runtimes, schema
from edgeprune_device.benchmark import run, trial
from edgeprune_device.benchmark.options import BenchmarkOptions
from edgeprune_device.errors import InputError, RuntimeUnavailable
from edgeprune_device.runtimes import Session
from fakes.service import Service

from .small import QUICK

BOTH = ["ort", "openvino"]
needs_both = pytest.mark.skipif(
    any(runtimes.available()[name] for name in BOTH), reason="needs onnxruntime and openvino: pip install openvino"
)


@pytest.fixture
def both(monkeypatch):
    """As on a machine without a GPU that has both."""
    there = {name: None if name in (*BOTH, "null") else "not here" for name in runtimes.names()}
    for name in runtimes.names():
        monkeypatch.setattr(runtimes._module(name), "available", lambda name=name: there[name])
    return there


def test_only_runtimes_on_the_cpu_compete(both):
    assert runtimes.candidates() == BOTH and runtimes.choose() == "ort"
    assert runtimes.candidates("openvino") == ["openvino"]
    both["trt"] = None
    assert runtimes.candidates() == ["trt"]
    both.update(trt="not here", ort="not here")
    assert runtimes.candidates() == ["openvino"]
    both["openvino"] = "not here"
    with pytest.raises(RuntimeUnavailable, match="runtime: none available"):
        runtimes.candidates()


@pytest.mark.parametrize(
    "times, chosen, text",
    [({"ort": 43.1, "openvino": 30.2}, "openvino", "ort 43.10 ms, openvino 30.20 ms"),
     ({"ort": 20.0, "openvino": 30.2}, "ort", "ort 20.00 ms, openvino 30.20 ms"),
     ({"ort": None, "openvino": 30.2}, "openvino", "ort failed, openvino 30.20 ms"),
     ({"ort": None, "openvino": None}, "ort", "ort failed, openvino failed")],
)  # fmt: skip
def test_fastest_runtime_is_chosen(bundle, both, monkeypatch, times, chosen, text):
    monkeypatch.setattr(trial, "_measured", lambda order, names, limit_s: times)
    runtime, measured = trial.choose(bundle, "auto")
    assert (
        runtime == chosen
        and str(measured) == f"runtime {chosen} is the fastest here (median time of an inference: {text})"
    )


def test_single_runtime_is_not_measured(bundle, both, monkeypatch):
    monkeypatch.setattr(trial, "_measured", lambda order, names, limit_s: pytest.fail("measured"))
    assert trial.choose(bundle, "openvino") == ("openvino", None)
    both["openvino"] = "not here"
    assert trial.choose(bundle, "auto") == ("ort", None)
    with pytest.raises(InputError, match="no int8 model"):
        both["openvino"] = None
        trial.choose(bundle, "auto", "int8")


def test_the_sessions_take_turns(monkeypatch):
    turns = []

    class Told(Session):
        def __init__(self, name):
            self.name = name

        def infer(self, x):
            assert x.shape == (1, 3, 64, 96)
            turns.append(self.name)

    x = layouts.noise(layouts.FLOAT32_NCHW, (64, 96))
    times = trial._times({"a": Told("a"), "b": Told("b")}, x)
    assert set(times) == {"a", "b"} and turns[:4] == ["a", "b", "a", "b"] and len(turns) == 2 * 17
    monkeypatch.setattr(trial, "_SECONDS", 0.0)
    turns.clear()
    trial._times({"a": Told("a")}, x)
    assert len(turns) == 2 + 3  # a slow one: no more than it takes


@pytest.mark.parametrize("code", ["os.kill(os.getpid(), signal.SIGSEGV)", "print('no JSON')", "time.sleep(60)"])
def test_crash_or_hang_selects_the_first_runtime(bundle, both, monkeypatch, code):
    monkeypatch.setattr(trial, "_CODE", f"import os, signal, time; {code}")
    assert trial.choose(bundle, "auto", limit_s=2.0) == ("ort", trial.Trial("ort", {"ort": None, "openvino": None}))


def test_another_bundle_is_not_measured(bundle, both):
    order = {"bundle": str(bundle.path), "sha256": "0" * 64, "threads": 1, "payloads": {"null": "model.fp32.onnx"}}
    assert trial._measured(order, BOTH, 30.0) == {"ort": None, "openvino": None}


@needs_both
def test_report_contains_both_figures(bundle, both):
    jsonschema = pytest.importorskip("jsonschema")
    report = run.run_benchmark(bundle, BenchmarkOptions(threads=1, with_accuracy=False, **QUICK))
    data = json.loads(json.dumps(report.to_json()))
    jsonschema.validate(data, schema.load("report"))
    times = report.runtime["trial_ms"]
    assert list(times) == BOTH and all(ms > 0 for ms in times.values())
    assert report.runtime["name"] == min(BOTH, key=times.get)
    assert f"\nchosen by   inference time, median: ort {times['ort']:.2f} ms, openvino " in report.table()
    named = run.run_benchmark(bundle, BenchmarkOptions(runtime="ort", threads=1, with_accuracy=False, **QUICK))
    assert named.runtime["trial_ms"] is None and "chosen by" not in named.table()


@needs_both
def test_the_service_measures_once(bundle, tmp_path):
    with Service(tmp_path, bundle.path, "--threads", "1", fake=False) as service:
        assert service.process.wait(120) == 0
    said = service.errors.read_text()
    assert said.count("is the fastest here (median time of an inference: ort ") == 1 and len(service.lines()) == 3
