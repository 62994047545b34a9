"""calibrate: ranges and thresholds from real distributions."""

import numpy as np
import onnxruntime
import pytest
from edgeprune_device.errors import InputError
from onnx import TensorProto, helper

from edgeprune import quantize
from edgeprune.quantize import TensorRange, calibrate

from .graphs import copied, pictures


def test_ranges_match_the_values_of_the_tensors(fp32, ranges):
    name = "/model.2/cv1/act/Mul_output_0"
    open_model = copied(fp32)
    open_model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(open_model.SerializeToString())
    values = np.stack([session.run([name], {"images": p})[0] for p in pictures()])
    measured = ranges.tensors[name]
    assert (measured.low, measured.high) == pytest.approx((values.min(), values.max()), rel=1e-5)
    assert ranges.amax()[name] == pytest.approx(np.abs(values).max(), rel=1e-5)
    counts, centres = measured.folded()
    assert np.average(centres, weights=counts) == pytest.approx(np.abs(values).mean(), rel=0.03)
    assert ranges.pictures == 4
    assert ranges.tensors["images"].high == pytest.approx(max(p.max() for p in pictures()))


def test_histogram_grows_without_losing_counts():
    r, values = TensorRange(), np.linspace(-3, 3, 1001)
    r.add(-0.5, 0.5, np.full(10, 0.5))
    r.add(values.min(), values.max(), values)
    assert r.reach == 4.0 and r.histogram.sum() == 1011
    counts, centres = r.folded()
    assert counts[np.abs(centres - 0.5) < 0.01].sum() >= 10


def test_each_method_clips_at_its_threshold():
    rng = np.random.default_rng(0)
    values = np.append(rng.normal(0, 1, 200_000), 40.0)  # one outlier
    r = TensorRange()
    r.add(values.min(), values.max(), values)
    ranges = quantize.Ranges({"x": r}, 1)
    at = {method: ranges.thresholds(method)["x"] for method in quantize.METHODS}
    assert at["max"] == 40.0
    assert at["percentile"] == pytest.approx(np.quantile(np.abs(values), 0.9999), rel=0.02)
    error = lambda t: np.mean((np.clip(np.rint(values / t * 127), -127, 127) * t / 127 - values) ** 2)  # noqa: E731
    assert error(at["mse"]) <= min(error(t) for t in 40.0 * np.linspace(0.1, 1, 19)) * 1.01
    assert 3 < at["entropy"] < 12
    assert ranges.scales("max")["x"] == 40.0 / 127
    with pytest.raises(InputError, match="mse, percentile"):
        ranges.thresholds("minmax")


def test_tensor_of_zeros_has_threshold_zero():
    r = TensorRange()
    r.add(0.0, 0.0, np.zeros(10))
    assert set(quantize.Ranges({"x": r}, 1).thresholds(m)["x"] for m in quantize.METHODS) == {0.0}


def test_calibration_refuses_no_images_and_wrong_shapes(fp32):
    with pytest.raises(InputError, match=r"no images .expected at least one"):
        calibrate(fp32, [])
    with pytest.raises(InputError, match="shape"):
        calibrate(fp32, [np.zeros((1, 3, 64, 64), np.float32)])
