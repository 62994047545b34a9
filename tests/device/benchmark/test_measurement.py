import pytest
from edgeprune_device.benchmark import run
from edgeprune_device.benchmark.options import BenchmarkOptions
from edgeprune_device.errors import InputError, RuntimeUnavailable
from edgeprune_device.vision.evaluation import EvaluationSet


def test_error_of_a_missing_precision_gives_the_reason(bundle):
    with pytest.raises(InputError, match=r"no int8 model \(the accuracy gate failed\); available: fp32"):
        run.run_benchmark(bundle, BenchmarkOptions(runtime="null", precision="int8"))
    with pytest.raises(InputError, match="no fp16 model; available: fp32"):
        run.run_benchmark(bundle, BenchmarkOptions(runtime="null", precision="fp16"))
    with pytest.raises(RuntimeUnavailable):
        run.run_benchmark(bundle, BenchmarkOptions(runtime="tpu"))


def test_bundles_without_models_or_images_are_refused(rebuilt):
    with pytest.raises(InputError, match="no model in this bundle"):
        run.run_benchmark(rebuilt(models={}), BenchmarkOptions(runtime="null"))
    with pytest.raises(InputError, match="no evaluation images"):
        run.run_benchmark(rebuilt(evaluation=None), BenchmarkOptions(runtime="null"))
    with pytest.raises(InputError, match="no images in this evaluation set"):
        run.run_benchmark(rebuilt({"evaluation.zip": EvaluationSet.pack([])}), BenchmarkOptions(runtime="null"))
    with pytest.raises(InputError, match=r"evaluation\.zip: not an evaluation set"):
        run.run_benchmark(rebuilt({"evaluation.zip": b"zip?"}), BenchmarkOptions(runtime="null"))
