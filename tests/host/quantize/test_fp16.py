"""fp16: an FP16 body with FP32 input and output, and layers that FP16 cannot hold."""

import json

import onnx
import onnxruntime
from edgeprune_device.output import RAW
from onnx import TensorProto

from edgeprune import quantize
from edgeprune.exporting.parity import compare_outputs
from edgeprune.quantize import calibrate, to_fp16
from edgeprune.quantize.graph import Graph, layer_of

from .graphs import copied, pictures, run, scale_weight


def test_fp16_converts_the_body_and_keeps_the_tail_in_fp32(fp32, ranges):
    made = to_fp16(fp32, ranges)
    assert made.kept == ()
    onnx.checker.check_model(made.model, full_check=True)
    graph = Graph(made.model)
    convolutions = [n for n in graph.nodes if n.op_type == "Conv"]
    half = [n for n in convolutions if graph.types[n.output[0]] == TensorProto.FLOAT16]
    assert len(convolutions) == 64 and len(half) == 63  # all but DFL
    assert {graph.types[n.output[0]] for n in graph.nodes if n.op_type == "Softmax"} == {TensorProto.FLOAT}
    assert graph.types["images"] == graph.types["output0"] == TensorProto.FLOAT
    for node in graph.nodes:
        if node.op_type == "Resize":
            assert {graph.types[i] for i in node.input[1:] if i} <= {TensorProto.FLOAT, TensorProto.INT64}
    assert len(made.model.SerializeToString()) < 0.55 * len(fp32.SerializeToString())
    picture = pictures(1, seed=9)[0]
    onnxruntime.InferenceSession(made.model.SerializeToString()).run(None, {"images": picture})  # default options
    box, score, *_ = compare_outputs(run(fp32, picture), run(quantize.rounded(made.model), picture), RAW)
    assert 1e-4 < box < 0.5 and 1e-6 < score < 5e-3  # values are rounded, and the effect is small


def test_layer_with_overflowing_activations_stays_fp32_and_is_named(fp32):
    model = copied(fp32)
    # SiLU is linear for large x: the input of model.2.cv2 grows 1e6-fold, and its weights shrink by the same factor.
    for name, factor in (("model.2.cv1.conv.weight", 1e6), ("model.2.cv2.conv.weight", 1e-6)):
        scale_weight(model, name, factor)
    made = to_fp16(model, calibrate(model, pictures(1)))
    named = {k.layer: k.reason for k in made.kept}
    assert "activations reach" in named["model.2.cv1.conv"]
    assert {"model.2", "model.2.cv2.conv"} <= set(named)  # the Split and Concat, and their reader
    assert not any(layer.startswith("model.9") for layer in named)
    (picture,) = pictures(1)
    box, score, *_ = compare_outputs(run(model, picture), run(quantize.rounded(made.model), picture), RAW)
    assert box < 1 and score < 0.01
    unguarded = run(quantize.rounded(to_fp16(model).model), picture)  # without ranges the overflow is not detected …
    assert not compare_outputs(run(model, picture), unguarded, RAW)[0] < 1  # … and ruins the boxes
    assert json.loads(json.dumps(made.to_json()))["kept_fp32"][0]["layer"]


def test_weights_that_fp16_cannot_hold_stay_fp32(fp32):
    model = copied(fp32)
    scale_weight(model, "model.3.conv.weight", 1e7)
    scale_weight(model, "model.5.conv.weight", 1e-7)
    named = {k.layer: k.reason for k in to_fp16(model).kept}
    assert set(named) == {"model.3.conv", "model.5.conv"}
    assert "65504" in named["model.3.conv"] and "lose" in named["model.5.conv"]


def test_named_layers_stay_fp32(fp32):
    made = to_fp16(fp32, keep_fp32=["model.22"])
    graph = Graph(made.model)
    types = {graph.types[n.output[0]] for n in graph.nodes if layer_of(n).startswith("model.22.")}
    assert TensorProto.FLOAT16 not in types and {k.reason for k in made.kept} == {"requested"}
    onnx.checker.check_model(made.model, full_check=True)
