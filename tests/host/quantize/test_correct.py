"""correct: bias correction removes the mean shift that rounding causes."""

import numpy as np
import pytest
from edgeprune_device.errors import InputError
from onnx import helper

from edgeprune import quantize
from edgeprune.quantize import TensorRange, check, correct_bias, reference_session, to_int8
from edgeprune.quantize.graph import Graph

from .graphs import copied, pictures


@pytest.mark.parametrize("kind", [{}, {"rest": "fp16"}, {"activations": "unsigned"}])
def test_bias_correction_removes_the_mean_shift(fp32, ranges, kind):
    # The input is clipped at a third, so the first convolution reads darker images.
    tight = quantize.Ranges({**ranges.tensors, "images": TensorRange(0.0, 0.33)}, 1)
    plain = to_int8(fp32, tight, method="max", **kind)
    corrected = correct_bias(fp32, plain, pictures())
    check(corrected, activations=kind.get("activations", "signed"))
    name = "/model.0/conv/Conv_output_0"
    shift = {}
    for label, model in (("fp32", fp32), ("plain", plain), ("corrected", corrected)):
        model = copied(model)
        model.graph.output.append(helper.make_tensor_value_info(name, Graph(model).types[name], None))
        values = [reference_session(model).run([name], {"images": p})[0].mean((0, 2, 3)) for p in pictures()]
        shift[label] = np.mean(values, 0)
    before, after = (np.abs(shift[label] - shift["fp32"]).mean() for label in ("plain", "corrected"))
    assert before > 0.01 and after < 0.02 * before
    with pytest.raises(InputError, match="at least one image"):
        correct_bias(fp32, plain, [])
