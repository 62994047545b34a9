"""A network with one layer that INT8 damages, and structured images."""

import numpy as np
import onnx
from onnx import numpy_helper

SIZE = 96

#: The convolution that reads the outlier channel.
READER = "model.2.cv1.conv"


def outlier(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network, except that one channel between two layers is a thousand times as large: SiLU is nearly linear
    there, and one scale per tensor leaves only a few levels for the other channels."""
    spoiled = onnx.ModelProto()
    spoiled.CopyFrom(model)
    weights = {t.name: t for t in spoiled.graph.initializer}

    def scale(name, index, factor):
        values = numpy_helper.to_array(weights[name]).copy()
        values[index] *= factor
        weights[name].CopyFrom(numpy_helper.from_array(values, name))

    scale("model.1.conv.weight", 0, 1000.0)
    scale("model.1.conv.bias", 0, 1000.0)
    scale(f"{READER}.weight", (slice(None), 0), 1e-3)
    return spoiled


def pictures(count=6, seed=0):
    rng = np.random.default_rng(seed)
    # Blocks, not noise, because the input must have structure.
    return [
        np.kron(rng.random((1, 3, 12, 12), dtype=np.float32), np.ones((1, 1, 8, 8), np.float32)) for _ in range(count)
    ]
