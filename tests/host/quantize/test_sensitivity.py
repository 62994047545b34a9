"""sensitivity: the effect of rounding each layer alone on the outputs."""

import pytest

from edgeprune import quantize as q
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.quantize.graph import Graph, layer_of

from ..outlier import READER, SIZE, outlier, pictures
from ..small import short


@pytest.fixture(scope="module")
def fp32():
    return to_onnx(short(), (SIZE, SIZE))


def test_layer_that_reads_an_outlier_is_the_most_sensitive(fp32):
    model = outlier(fp32)
    ranges = q.calibrate(model, pictures())
    layers = q.sensitivities(
        model, lambda exclude: q.to_int8(model, ranges, method="max", exclude=exclude), q.Probe(model, pictures(2, 5))
    )
    assert len(layers) == 27 and {s.layer for s in layers} == {layer_of(n) for n in Graph(model).body_convolutions()}
    assert max(layers, key=lambda s: s.error).layer == READER
    assert 0.9 < sum(s.macs_share for s in layers) <= 1
