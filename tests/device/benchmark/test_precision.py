import pytest
from edgeprune_device import runtimes
from edgeprune_device.benchmark import precision, run
from edgeprune_device.benchmark.options import BenchmarkOptions
from edgeprune_device.errors import InputError
from edgeprune_device.machine.environment import Environment

from .small import QUICK, both


def test_runtime_decides_which_file_int8_selects(gpu_bundle, fake_tensorrt):
    manifest = gpu_bundle().manifest
    for release, expected in (("8.6.1", "int8"), ("10.3.0", "int8-fp16")):
        fake_tensorrt(release)
        assert precision.choose_precision(manifest, "trt", "int8") == expected
    assert precision.choose_precision(manifest, "ort", "int8") == "int8"
    assert runtimes.order("null") == ("fp32", "fp16", "int8", "int8-fp16")
    with pytest.raises(InputError, match="no int8 model; available: fp32"):
        precision.choose_precision(gpu_bundle(("fp32",)).manifest, "trt", "int8")


@pytest.mark.parametrize("bits, saturates, expected", [(8, True, "fp32"), (8, False, "int8"), (7, True, "int8")])
def test_auto_skips_weights_that_would_saturate(rebuilt, manifest, monkeypatch, bits, saturates, expected):
    monkeypatch.setattr(Environment, "saturates", saturates)
    entry = {**manifest["models"]["fp32"], "weight_bits": bits}
    other = rebuilt(target="cpu", models={**manifest["models"], "int8": entry})
    assert precision.choose_precision(other.manifest, "ort") == expected
    pytest.importorskip("onnxruntime")
    report = run.run_benchmark(other, BenchmarkOptions(runtime="ort", precision="int8", with_accuracy=False, **QUICK))
    assert any("no VNNI" in text for text in report.warnings) == (bits == 8 and saturates)


@pytest.mark.parametrize("target, expected", [("cpu", "int8"), ("jetson-orin", "fp32"), ("my-own-drone", "fp32")])
def test_auto_selects_int8_only_if_it_was_made_for_a_cpu(rebuilt, manifest, monkeypatch, target, expected):
    monkeypatch.setattr(Environment, "saturates", False)
    bundle = rebuilt(**both(manifest, target))
    assert precision.choose_precision(bundle.manifest, "ort") == expected
    assert precision.choose_precision(bundle.manifest, "ort", "int8") == "int8"
