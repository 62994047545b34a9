"""int8: the placement of Q/DQ, for TensorRT and for a CPU."""

import numpy as np
import onnx
import onnxruntime
import pytest
from edgeprune_device.errors import GateError, InputError
from onnx import TensorProto, numpy_helper

from edgeprune import quantize
from edgeprune.exporting import tensorrt
from edgeprune.quantize import calibrate, check, int8_share, to_fp16, to_int8
from edgeprune.quantize.graph import MOVES, Graph, layer_of

from .graphs import alike, exported, pictures, run


def test_signed_int8_obeys_the_rules_and_stays_close(fp32, ranges, int8):
    check(int8)
    assert int8.opset_import[0].version == 17
    assert int8_share(int8) > 0.9 and int8_share(fp32) == 0.0
    graph = Graph(int8)
    weights = [t for t in int8.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 4]
    assert len(weights) == 57
    assert all(np.abs(numpy_helper.to_array(t)).max() == 127 for t in weights)
    assert {tuple(graph.shapes[n.input[1]]) for n in graph.nodes if n.op_type == "QuantizeLinear"} == {()}
    picture = pictures(1, seed=9)[0]
    expected, actual = run(fp32, picture), run(int8, picture)
    assert not np.array_equal(expected, actual)
    assert alike(expected, actual) > 0.9


def test_moved_values_and_concatenations_share_one_scale(int8):
    graph = Graph(int8)
    seen = 0
    for node in graph.nodes:
        if node.op_type in MOVES and graph.in_body(node):
            sources = [graph.producer[name] for name in graph.activations(node)]
            assert {n.op_type for n in sources} == {"DequantizeLinear"}
            after = [r for name in node.output for r in graph.readers[name] if r.op_type == "QuantizeLinear"]
            assert len({float(graph.array(n.input[1])) for n in (*sources, *after)}) == 1
            seen += 1
    assert seen == 8 + 13 + 3 + 2  # Split, Concat, MaxPool, Resize


def test_residual_adds_read_int8_on_both_sides(int8):
    graph = Graph(int8)
    adds = [n for n in graph.nodes if n.op_type == "Add" and graph.in_body(n)]
    assert len(adds) == 6
    assert all(graph.producer[name].op_type == "DequantizeLinear" for n in adds for name in n.input)


def test_int8_fp16_is_strongly_typed_and_close_to_int8(fp32, ranges):
    model = to_int8(fp32, ranges, method="max", rest="fp16")
    check(model)
    assert model.opset_import[0].version >= 19
    graph = Graph(model)
    scales = {graph.types[n.input[1]] for n in graph.nodes if n.op_type.endswith("quantizeLinear")}
    assert scales == {TensorProto.FLOAT16}
    assert graph.types["images"] == graph.types["output0"] == TensorProto.FLOAT
    assert {p.key for p in model.metadata_props} == {p.key for p in fp32.metadata_props}
    picture = pictures(1, seed=9)[0]
    plain = run(to_int8(fp32, ranges, method="max"), picture)
    assert alike(plain, run(model, picture)) > 0.9  # not equal: FP16 moves some values over an INT8 step


def test_unsigned_runs_on_integer_kernels_and_can_have_7_bit_weights(fp32, ranges, tmp_path):
    model = to_int8(fp32, ranges, activations="unsigned", reduce_range=True)
    check(model, activations="unsigned")
    with pytest.raises(GateError):
        check(model)  # TensorRT would refuse it
    tops = {int(np.abs(numpy_helper.to_array(t)).max()) for t in model.graph.initializer if len(t.dims) == 4}
    assert 63 in tops and 127 not in tops
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    ops = [n.op_type for n in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert ops.count("QLinearConv") == 57 and ops.count("QLinearSigmoid") == 57
    picture = pictures(1, seed=9)[0]
    actual = session.run(None, {"images": picture})[0]
    assert alike(run(fp32, picture), actual) > 0.9
    full = to_int8(fp32, ranges, activations="unsigned")
    assert max(np.abs(numpy_helper.to_array(t)).max() for t in full.graph.initializer if t.data_type == 3) == 127


def test_excluded_layers_stay_float(fp32, ranges):
    model = to_int8(fp32, ranges, exclude=["model.0", "model.22.cv3"])
    check(model)
    graph = Graph(model)
    for node in graph.nodes:
        if node.op_type == "Conv":
            free = layer_of(node).startswith(("model.0.", "model.22.cv3.", "model.22.dfl")) or (
                node.output[0] in graph.last_convolutions
            )
            assert (graph.producer.get(node.input[1]) is None) == free, node.name
    assert int8_share(model) < int8_share(to_int8(fp32, ranges))


def test_unknown_options_and_ranges_of_another_model_are_refused(fp32, ranges):
    with pytest.raises(InputError, match="signed or unsigned"):
        to_int8(fp32, ranges, activations="both")
    with pytest.raises(InputError, match="calibrate the same model"):
        to_int8(fp32, quantize.Ranges({}, 1))


def test_every_precision_handles_attention_and_a_one_to_one_head():
    fp32 = exported("yolo26n.yaml", end2end=True)
    ranges = calibrate(fp32, pictures(2))
    (picture,) = pictures(1, seed=9)
    shape = run(fp32, picture).shape
    for model in (to_int8(fp32, ranges), to_int8(fp32, ranges, rest="fp16")):
        check(model)
        assert run(model, picture).shape == shape and int8_share(model) > 0.85
    for model in (to_fp16(fp32, ranges).model, to_int8(fp32, ranges, activations="unsigned")):
        onnx.checker.check_model(model, full_check=True)
        assert onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"images": picture})[0].shape == shape


@pytest.mark.skipif(tensorrt.available() is not None, reason=str(tensorrt.available()))
def test_tensorrt_accepts_signed_files_and_refuses_unsigned_ones(fp32, ranges, int8, tmp_path):
    files = {"int8": int8, "int8-fp16": to_int8(fp32, ranges, rest="fp16")}
    for name, model in files.items():
        onnx.save(model, tmp_path / f"{name}.onnx")
        done = tensorrt.build(tmp_path / f"{name}.onnx", "SM86")
        assert done.reason is None and done.size_bytes > 1_000_000, name
    onnx.save(to_int8(fp32, ranges, activations="unsigned"), tmp_path / "cpu.onnx")
    with pytest.raises(GateError, match=r"cpu\.onnx: .*QuantizeLinear .*model\.0"):
        tensorrt.build(tmp_path / "cpu.onnx")
