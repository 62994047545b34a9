"""Tests of `edgeprune engine` with fakes of TensorRT and libcudart."""

import json
import sys

import pytest
from edgeprune_device import cli
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision.evaluation import EvaluationSet
from fakes import fake_tensorrt as fake
from fakes import models


def edgeprune(capsys, *args):
    code = cli.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


@pytest.mark.parametrize("release, best", [("8.5.2", "int8"), ("10.3.0", "int8-fp16"), ("11.4.0.106", "int8-fp16")])
def test_fastest_supported_file_is_built_and_then_cached(capsys, gpu_bundle, fake_tensorrt, release, best):
    fake_tensorrt(release)
    path = gpu_bundle().path
    code, out, err = edgeprune(capsys, "engine", path, "--cuda", "ctypes")
    assert (code, err) == (0, "")
    head, row, by = out.splitlines()[:3]
    assert head.split()[:2] == ["precision", "MB"] and row.split()[0] == best and " built " in row
    assert by == f"by TensorRT {release} for Fake Orin (SM 8.7)"
    code, out, _ = edgeprune(capsys, "engine", path, "--cuda", "ctypes")
    assert code == 0 and " cached " in out
    code, out, _ = edgeprune(capsys, "engine", path, "--cuda", "ctypes", "--rebuild")
    assert code == 0 and " built " in out


def test_all_precisions_are_built_and_their_plans_written_for_trtexec(capsys, gpu_bundle, fake_tensorrt, tmp_path):
    fake_tensorrt("10.3.0")
    (tmp_path / "out").mkdir()
    path = gpu_bundle().path
    options = ("--precision", "all", "--out", tmp_path / "out", "--json", "--cuda", "ctypes", "--workspace", 300)
    code, out, _ = edgeprune(capsys, "engine", path, *options)
    data = json.loads(out)
    assert code == 0 and [entry["precision"] for entry in data] == ["int8-fp16", "int8", "fp16", "fp32"]
    for entry in data:
        assert entry["workspace_bytes"] == 300 * 10**6 and not entry["cached"]
        plan = (tmp_path / "out" / f"tiny.{entry['precision']}.plan").read_bytes()
        with open(entry["path"], "rb") as stream:
            assert plan == stream.read() and plan.startswith(fake.MAGIC)
        beside = json.loads((tmp_path / "out" / f"tiny.{entry['precision']}.json").read_text())
        assert beside == {key: value for key, value in entry.items() if key not in ("path", "cached", "key", "runtime")}
    # Only int8 was built with flags, and the node that the bundle names stayed in FP32.
    assert [entry["fp32_layers"] for entry in data] == [0, 1, 0, 0]


def test_int8_selects_the_file_that_this_release_supports(capsys, gpu_bundle, fake_tensorrt):
    fake_tensorrt("10.3.0")
    code, out, _ = edgeprune(
        capsys, "engine", gpu_bundle().path, "--precision", "int8,fp16", "--cuda", "ctypes", "--json"
    )
    assert code == 0 and [entry["precision"] for entry in json.loads(out)] == ["int8-fp16", "fp16"]
    fake_tensorrt("8.6.1")
    code, out, _ = edgeprune(capsys, "engine", gpu_bundle().path, "--precision", "all", "--cuda", "ctypes", "--json")
    assert code == 0 and [entry["precision"] for entry in json.loads(out)] == ["int8", "fp16", "fp32"]
    # INT8 for the CPU has unsigned activations, which TensorRT's parser refuses.
    cpu = gpu_bundle(("fp32", "fp16", "int8"), target="cpu").path
    code, out, _ = edgeprune(capsys, "engine", cpu, "--precision", "all", "--cuda", "ctypes", "--json")
    assert code == 0 and [entry["precision"] for entry in json.loads(out)] == ["fp16", "fp32"]


def test_errors_are_one_line(capsys, gpu_bundle, fake_tensorrt, monkeypatch, tmp_path):
    fake_tensorrt("8.6.1")
    path = gpu_bundle(("fp32", "int8-fp16")).path

    def failure(*options):
        code, out, err = edgeprune(capsys, "engine", path, "--cuda", "ctypes", *options)
        assert out == "" and len(err.splitlines()) == 1
        return code, err

    assert failure("--precision", "fp16") == (
        2,
        "edgeprune: error: bundle tiny: no fp16 model; available: fp32, int8-fp16\n",
    )
    code, err = failure("--precision", "int8-fp16")
    assert code == 2 and "no strongly typed networks" in err
    code, err = failure("--out", tmp_path / "none")
    assert code == 2 and "no such folder" in err
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "kill")
    code, err = failure()
    assert code == 2 and "gpu.epb: model.fp32.onnx: the engine builder was killed" in err
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "refuse")
    code, err = failure()
    assert code == 1 and "cannot build an engine from " in err
    only = gpu_bundle(("int8-fp16",)).path
    code, _, err = edgeprune(capsys, "engine", only, "--cuda", "ctypes")
    assert code == 2 and "bundle tiny: no model for runtime trt (found int8-fp16, expected int8 or fp16 or fp32)" in err


def test_changed_bundle_is_not_built(capsys, gpu_bundle, fake_tensorrt, builds):
    fake_tensorrt("10.3.0")
    path = gpu_bundle().path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    code, _, _ = edgeprune(capsys, "engine", path, "--cuda", "ctypes")
    assert code == 1 and builds() == []


def test_missing_tensorrt_error_names_the_package_to_install(capsys, gpu_bundle, monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    code, out, err = edgeprune(capsys, "engine", gpu_bundle().path)
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert "no engine can be built here (TensorRT is not installed" in err and "apt install" in err


def test_tensorrt_for_rtx_builds_if_it_is_the_only_library(capsys, gpu_bundle, fake_tensorrt, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    fake_tensorrt(fake.RTX)
    code, out, _ = edgeprune(capsys, "engine", gpu_bundle().path, "--cuda", "ctypes")
    assert code == 0 and "by TensorRT for RTX 1.7.1.116" in out


def test_refused_precision_does_not_stop_the_others(capsys, fake_tensorrt, tmp_path, manifest, labelled_pictures):
    fake_tensorrt("10.3.0")
    files = {"fp32": models.detector("fp32"), "fp16": b"no ONNX"}
    entries = {p: {"payload": f"model.{p}.onnx"} for p in files}
    payloads = {f"model.{p}.onnx": data for p, data in files.items()}
    payloads["evaluation.zip"] = EvaluationSet.pack(labelled_pictures)
    parts = {**manifest, "target": "jetson-orin", "models": entries}
    path = Bundle.write(tmp_path / "two.epb", parts, payloads, keys.load_or_create()).path
    code, out, err = edgeprune(capsys, "engine", path, "--precision", "all", "--cuda", "ctypes")
    assert code == 1 and out.splitlines()[1].startswith("fp32") and "model.fp16.onnx: refused by TensorRT 10.3.0" in err
    code, out, err = edgeprune(capsys, "engine", path, "--precision", "all", "--cuda", "ctypes", "--json")
    good, bad = json.loads(out)
    assert code == 1 and good["precision"] == "fp32" and good["cached"] and good["runtime"] == "trt"
    assert bad["precision"] == "fp16" and "refused by TensorRT" in bad["reason"] and set(bad) == {"precision", "reason"}


def test_on_without_the_host_package_is_one_line(capsys, bundle, monkeypatch):
    monkeypatch.setattr("edgeprune_device.commands.HOST", "edgeprune.host of nobody")
    code, out, err = edgeprune(capsys, "engine", bundle.path, "--on", "user@jetson")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "pip install edgeprune" in err
