"""Tests of engines in a bundle from a reference device, with the fakes of TensorRT and libcudart."""

import hashlib
import json

import pytest
from edgeprune_device import cli
from edgeprune_device.benchmark import run
from edgeprune_device.benchmark.options import BenchmarkOptions
from edgeprune_device.cuda import Device
from edgeprune_device.engine import Request, offer
from edgeprune_device.engine.cache import Cache
from edgeprune_device.errors import SignatureError
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision.evaluation import EvaluationSet
from fakes import fake_tensorrt as fake
from fakes import models
from nacl.signing import SigningKey

ORIN = Device("Fake Orin", "8.7", True, 16)


@pytest.fixture
def brought(fake_tensorrt, tmp_path, manifest, labelled_pictures, monkeypatch):
    """make(…): a bundle with the engine that a reference device of this release built for its FP16 model."""

    def make(release="10.3.0", device=ORIN, key=None, **change):
        fake_tensorrt(release)
        there = Cache(tmp_path / "reference")
        onnx = models.detector("fp16")
        built = there.engine(Request(onnx, "fp16", cuda="ctypes", fp32_nodes=(models.TAIL,)), device)
        # An unknown field after the ONNX in the fake's plan marks the origin of the plan.
        plan = built.plan + models.field(999, b"reference")
        engine = {**built.to_json(), "plan_sha256": hashlib.sha256(plan).hexdigest(), "size_bytes": len(plan)}
        engine.update(change)
        parts = {
            **manifest,
            "target": "jetson-orin",
            "models": {"fp16": {"payload": "model.fp16.onnx", "fp32_nodes": [models.TAIL]}},
            "engines": {
                "fp16.sm86": {"payload": None, "reason": "a check only"},
                "fp16.orin": {
                    "payload": "model.fp16.orin.plan",
                    "builder": built.builder,
                    "for": "Fake Orin (SM 8.7)",
                    "key": built.key,
                    "engine": engine,
                },
            },
        }
        payloads = {"model.fp16.onnx": onnx, "model.fp16.orin.plan": plan}
        payloads["evaluation.zip"] = EvaluationSet.pack(labelled_pictures)
        (tmp_path / "builds.jsonl").unlink()
        return Bundle.write(tmp_path / "brought.epb", parts, payloads, key or keys.load_or_create())

    return make


@pytest.fixture
def loaded(monkeypatch, fake_tensorrt):
    """The plans that TensorRT has deserialized."""
    plans = []
    deserialize = fake._Runtime.deserialize_cuda_engine

    def noted(self, plan):
        plans.append(bytes(plan))
        return deserialize(self, plan)

    monkeypatch.setattr(fake._Runtime, "deserialize_cuda_engine", noted)
    return plans


def bench(bundle):
    options = {"runtime": "trt", "cuda": "ctypes", "seconds": 0.05, "warmup_seconds": 0.05, "idle_seconds": 0.1}
    return run.run_benchmark(bundle, BenchmarkOptions(**options))


def edgeprune(capsys, *args):
    code = cli.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_matching_engine_of_a_bundle_is_used_without_a_build(brought, builds, loaded):
    pytest.importorskip("onnxruntime")
    bundle = brought()
    report = bench(bundle)
    plan = bundle.read("model.fp16.orin.plan")
    assert builds() == [] and loaded == [plan]
    assert "the engine is from the bundle, built by TensorRT 10.3.0 on Fake Orin" in report.warnings
    # It is now in the cache, signed by this machine: trtexec reads it, and the next start needs no bundle.
    (path,) = Cache().folder.glob("*.plan")
    assert path.read_bytes() == plan and path.stem == bundle.manifest.engines["fp16.orin"]["key"]
    engine = Cache().engine(Request(models.detector("fp16"), "fp16", cuda="ctypes"), ORIN)
    assert engine.cached and engine.adopted_from == bundle.key_fingerprint and builds() == []


def test_engine_command_reports_an_adopted_engine(brought, builds, capsys, tmp_path):
    path = brought().path
    code, out, err = edgeprune(capsys, "engine", path, "--cuda", "ctypes")
    assert (code, err) == (0, "") and " adopted " in out and builds() == []
    (tmp_path / "out").mkdir()
    code, out, _ = edgeprune(capsys, "engine", path, "--cuda", "ctypes", "--json", "--out", tmp_path / "out")
    (entry,) = json.loads(out)
    assert code == 0 and entry["cached"] and entry["adopted_from"] == keys.fingerprint(keys.load_or_create().verify_key)
    assert (tmp_path / "out/tiny.fp16.plan").read_bytes() == Bundle.open(path).read("model.fp16.orin.plan")
    code, out, _ = edgeprune(capsys, "engine", path, "--cuda", "ctypes", "--rebuild")
    assert code == 0 and " built " in out and len(builds()) == 1


@pytest.mark.parametrize("release", ["8.6.1", "10.12.0.36"])
def test_engine_of_another_tensorrt_is_ignored_and_built_here(brought, builds, fake_tensorrt, loaded, release):
    pytest.importorskip("onnxruntime")
    bundle = brought("10.3.0")
    fake_tensorrt(release)
    report = bench(bundle)
    (plan,) = loaded
    assert len(builds()) == 1 and builds()[0]["release"] == release and b"reference" not in plan
    warnings = [text for text in report.warnings if "does not run on" in text]
    assert warnings == [
        "the bundle's engine (built by TensorRT 10.3.0 on Fake Orin (SM 8.7)) does not run on "
        f"TensorRT {release} on Fake Orin (SM 8.7, 16 multiprocessors); an engine was built here"
    ]


@pytest.mark.parametrize("device", [Device("Fake Orin", "8.7", True, 8), Device("Xavier", "7.2", True, 8)])
def test_engine_of_another_gpu_is_ignored_and_built_here(brought, builds, loaded, device):
    pytest.importorskip("onnxruntime")
    report = bench(brought(device=device))
    assert len(builds()) == 1 and b"reference" not in loaded[0]
    assert any("does not run on TensorRT 10.3.0 on Fake Orin" in text for text in report.warnings)


def test_engine_of_an_untrusted_bundle_is_never_deserialized(brought, builds, loaded, capsys):
    pytest.importorskip("onnxruntime")
    path = brought(key=SigningKey.generate()).path
    with pytest.raises(SignatureError, match="not trusted"):
        Bundle.open(path)
    bundle = Bundle.open(path, allow_untrusted=True)
    assert offer.of(bundle, "fp16") == ()
    bench(bundle)
    assert len(builds()) == 1 and len(loaded) == 1 and b"reference" not in loaded[0]
    code, out, _ = edgeprune(capsys, "engine", path, "--cuda", "ctypes", "--allow-untrusted")
    assert code == 0 and "adopted" not in out


def test_plan_that_does_not_match_its_description_is_refused(brought, builds, loaded):
    pytest.importorskip("onnxruntime")
    report = bench(brought(plan_sha256="0" * 64))
    assert len(builds()) == 1 and b"reference" not in loaded[0]
    assert "the bundle's engine fp16.orin is not used, because its description does not match it" in report.warnings


@pytest.mark.parametrize("change", [{"sm": "7.2"}, {"builder": "TensorRT 10.2.0"}, {"onnx_sha256": "0" * 64}])
def test_engine_with_the_key_of_another_one_is_refused(brought, builds, change):
    bundle = brought(**change)
    engine = Cache().engine(
        Request(models.detector("fp16"), "fp16", cuda="ctypes"), ORIN, offers=offer.of(bundle, "fp16")
    )
    assert not engine.cached and "its description does not match it" in engine.warnings[0] and len(builds()) == 1


def test_bundle_that_changes_after_verification_is_refused(brought, builds, loaded):
    bundle = brought()
    entry = bundle.payloads["model.fp16.orin.plan"]
    data = bytearray(bundle.path.read_bytes())
    data[len(data) - bundle.manifest.size_bytes + entry.offset_bytes + entry.size_bytes - 1] ^= 1
    bundle.path.write_bytes(bytes(data))
    with pytest.raises(SignatureError, match=r"model\.fp16\.orin\.plan: does not match its signed SHA-256"):
        bench(bundle)
    assert builds() == [] and loaded == [] and not list(Cache().folder.glob("*.plan"))


def test_engine_described_by_a_newer_edgeprune_is_ignored(brought, builds):
    assert offer.of(brought(schema_version=2), "fp16") == ()


def test_engine_for_another_precision_is_not_offered(brought):
    bundle = brought()
    assert [o.name for o in offer.of(bundle, "fp16")] == ["fp16.orin"] and offer.of(bundle, "fp32") == ()


def test_engine_with_another_workspace_is_built_here(brought, builds):
    request = Request(models.detector("fp16"), "fp16", cuda="ctypes", workspace_bytes=64 << 20)
    engine = Cache().engine(request, ORIN, offers=offer.of(brought(), "fp16"))
    assert not engine.cached and "a different workspace" in engine.warnings[0] and len(builds()) == 1


def test_engines_of_a_signer_that_is_no_longer_trusted_are_not_used(brought, builds, home):
    other = SigningKey.generate()
    (home / "trusted").mkdir(parents=True)
    public = home / "trusted" / "other.pub"
    public.write_text(bytes(other.verify_key).hex() + "\n")
    request = Request(models.detector("fp16"), "fp16", cuda="ctypes")
    Cache().engine(request, ORIN, offers=offer.of(brought(key=other), "fp16"))
    assert Cache().engine(request, ORIN).cached and builds() == []
    public.unlink()
    again = Cache().engine(request, ORIN)
    assert not again.cached and "no longer trusted" in again.warnings[0] and len(builds()) == 1
    assert again.adopted_from is None and b"reference" not in again.plan


def test_engine_of_a_bundle_that_does_not_load_is_built_here(brought, builds, monkeypatch, loaded):
    """The same TensorRT and GPU do not guarantee that an engine loads."""
    pytest.importorskip("onnxruntime")
    deserialize = fake._Runtime.deserialize_cuda_engine

    def choosy(self, plan):
        if b"reference" in bytes(plan):
            self._log.log(self._log.ERROR, "built with another driver")
            return None
        return deserialize(self, plan)

    monkeypatch.setattr(fake._Runtime, "deserialize_cuda_engine", choosy)
    bundle = brought()
    report = bench(bundle)
    assert len(builds()) == 1 and any("is not used: TensorRT 10.3.0 cannot load" in text for text in report.warnings)
    again = bench(bundle)  # the second run uses the cache
    assert len(builds()) == 1 and not any("is not used" in text for text in again.warnings)
