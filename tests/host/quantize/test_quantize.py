"""quantize: types that hold, layers FP16 cannot hold, scales from real distributions, and the rules of a Q/DQ graph."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from edgeprune_device.errors import GateError, InputError
from edgeprune_device.output import RAW
from onnx import TensorProto, helper, numpy_helper
from ultralytics.nn.tasks import DetectionModel

from edgeprune import quantize
from edgeprune.exporting import tensorrt
from edgeprune.exporting.parity import compare_outputs
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.quantize import (
    TensorRange,
    calibrate,
    check,
    choose,
    correct_bias,
    int8_share,
    reference_session,
    to_fp16,
    to_int8,
)
from edgeprune.quantize.graph import MOVES, Graph, layer_of

from ..small import settle

SIZE = 96


def exported(config):
    """A random detector whose features depend on the picture as a trained one's do (see test_export)."""
    torch.manual_seed(0)
    model = DetectionModel(config, nc=4, verbose=False)
    settle(model, 4, SIZE, least=1.0)
    head = model.model[-1]
    for tower in (*(head.cv3 or ()), *(getattr(head, "one2one_cv3", None) or ())):
        tower[-1].weight.data.normal_(0, 0.2)
        tower[-1].bias.data.fill_(-3.0)
    return to_onnx(model.eval(), (SIZE, SIZE))


def pictures(count=4, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.random((1, 3, SIZE, SIZE), dtype=np.float32) for _ in range(count)]


def copied(model):
    clone = onnx.ModelProto()
    clone.CopyFrom(model)
    return clone


def run(model, picture):
    return reference_session(model).run(None, {"images": picture})[0]


def alike(expected, found):
    """Correlation of the scores; a random network is too unruly for a smaller tolerance on each."""
    return np.corrcoef(expected[0, 4:].ravel(), found[0, 4:].ravel())[0, 1]


def tensor(model, name):
    return next(t for t in model.graph.initializer if t.name == name)


def scale_weight(model, name, factor):
    t = tensor(model, name)
    t.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(t) * factor).astype(np.float32), name))


@pytest.fixture(scope="module")
def fp32():
    return exported("yolov8n.yaml")


@pytest.fixture(scope="module")
def ranges(fp32):
    return calibrate(fp32, pictures())


@pytest.fixture(scope="module")
def int8(fp32, ranges):
    return to_int8(fp32, ranges)


# --- the graph


def test_the_body_ends_at_the_last_convolutions_of_the_head(fp32):
    graph = Graph(fp32)
    last = sorted(layer_of(graph.producer[name]) for name in graph.last_convolutions)
    assert last == sorted(f"model.22.{tower}.{level}.2" for tower in ("cv2", "cv3") for level in (0, 1, 2))
    assert len(graph.body_convolutions()) == 57
    assert not any(n.op_type == "Softmax" and graph.in_body(n) for n in graph.nodes)


# --- calibration


def test_ranges_are_those_of_the_tensors_themselves(fp32, ranges):
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


def test_a_histogram_grows_without_losing_counts():
    r, values = TensorRange(), np.linspace(-3, 3, 1001)
    r.add(-0.5, 0.5, np.full(10, 0.5))
    r.add(values.min(), values.max(), values)
    assert r.reach == 4.0 and r.histogram.sum() == 1011
    counts, centres = r.folded()
    assert counts[np.abs(centres - 0.5) < 0.01].sum() >= 10


def test_methods_clip_where_they_say():
    rng = np.random.default_rng(0)
    values = np.append(rng.normal(0, 1, 200_000), 40.0)  # one wild value
    r = TensorRange()
    r.add(values.min(), values.max(), values)
    found = quantize.Ranges({"x": r}, 1)
    at = {method: found.thresholds(method)["x"] for method in quantize.METHODS}
    assert at["max"] == 40.0
    assert at["percentile"] == pytest.approx(np.quantile(np.abs(values), 0.9999), rel=0.02)
    error = lambda t: np.mean((np.clip(np.rint(values / t * 127), -127, 127) * t / 127 - values) ** 2)  # noqa: E731
    assert error(at["mse"]) <= min(error(t) for t in 40.0 * np.linspace(0.1, 1, 19)) * 1.01
    assert 3 < at["entropy"] < 12
    assert found.scales("max")["x"] == 40.0 / 127
    with pytest.raises(InputError, match="mse, percentile"):
        found.thresholds("minmax")


def test_a_silent_tensor_has_a_threshold():
    r = TensorRange()
    r.add(0.0, 0.0, np.zeros(10))
    assert set(quantize.Ranges({"x": r}, 1).thresholds(m)["x"] for m in quantize.METHODS) == {0.0}


def test_calibration_needs_pictures_of_the_models_size(fp32):
    with pytest.raises(InputError, match="at least one picture"):
        calibrate(fp32, [])
    with pytest.raises(InputError, match="shape"):
        calibrate(fp32, [np.zeros((1, 3, 64, 64), np.float32)])


# --- FP16


def test_fp16_body_fp32_ends(fp32, ranges):
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
    onnxruntime.InferenceSession(made.model.SerializeToString()).run(None, {"images": picture})  # stock options take it
    box, score, *_ = compare_outputs(run(fp32, picture), run(quantize.rounded(made.model), picture), RAW)
    assert 1e-4 < box < 0.5 and 1e-6 < score < 5e-3  # really rounded, and harmless


def test_a_layer_whose_activations_overflow_stays_fp32_and_is_named(fp32):
    model = copied(fp32)
    # SiLU is linear for large x: model.2.cv2's input grows 1e7-fold, its weights shrink as much.
    for name, factor in (("model.2.cv1.conv.weight", 1e6), ("model.2.cv2.conv.weight", 1e-6)):
        scale_weight(model, name, factor)
    made = to_fp16(model, calibrate(model, pictures(1)))
    named = {k.layer: k.reason for k in made.kept}
    assert "activations reach" in named["model.2.cv1.conv"]
    assert {"model.2", "model.2.cv2.conv"} <= set(named)  # the Split and Concat, and what reads them
    assert not any(layer.startswith("model.9") for layer in named)
    (picture,) = pictures(1)
    box, score, *_ = compare_outputs(run(model, picture), run(quantize.rounded(made.model), picture), RAW)
    assert box < 1 and score < 0.01
    unguarded = run(quantize.rounded(to_fp16(model).model), picture)  # without ranges the overflow is not seen …
    assert not compare_outputs(run(model, picture), unguarded, RAW)[0] < 1  # … and ruins the boxes
    assert json.loads(json.dumps(made.to_json()))["kept_fp32"][0]["layer"]


def test_weights_that_fp16_cannot_hold_stay_fp32(fp32):
    model = copied(fp32)
    scale_weight(model, "model.3.conv.weight", 1e7)
    scale_weight(model, "model.5.conv.weight", 1e-7)
    named = {k.layer: k.reason for k in to_fp16(model).kept}
    assert set(named) == {"model.3.conv", "model.5.conv"}
    assert "65504" in named["model.3.conv"] and "lose" in named["model.5.conv"]


def test_layers_can_be_kept_by_name(fp32):
    made = to_fp16(fp32, keep_fp32=["model.22"])
    graph = Graph(made.model)
    types = {graph.types[n.output[0]] for n in graph.nodes if layer_of(n).startswith("model.22.")}
    assert TensorProto.FLOAT16 not in types and {k.reason for k in made.kept} == {"asked for"}
    onnx.checker.check_model(made.model, full_check=True)


# --- INT8


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
    expected, found = run(fp32, picture), run(int8, picture)
    assert not np.array_equal(expected, found)
    assert alike(expected, found) > 0.9


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


def test_int8_fp16_is_strongly_typed_and_equals_the_fp32_kind(fp32, ranges):
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
    found = session.run(None, {"images": picture})[0]
    assert alike(run(fp32, picture), found) > 0.9
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


def test_options_and_ranges_that_do_not_fit_are_refused(fp32, ranges):
    with pytest.raises(InputError, match="signed or unsigned"):
        to_int8(fp32, ranges, activations="both")
    with pytest.raises(InputError, match="calibrate this same model"):
        to_int8(fp32, quantize.Ranges({}, 1))


def test_attention_and_a_one_to_one_head_in_every_precision():
    fp32 = exported("yolo26n.yaml")
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
def test_tensorrt_takes_signed_files_and_refuses_the_cpus(fp32, ranges, int8, tmp_path):
    files = {"int8": int8, "int8-fp16": to_int8(fp32, ranges, rest="fp16")}
    for name, model in files.items():
        onnx.save(model, tmp_path / f"{name}.onnx")
        done = tensorrt.build(tmp_path / f"{name}.onnx", "SM86")
        assert done.reason is None and done.size_bytes > 1_000_000, name
    onnx.save(to_int8(fp32, ranges, activations="unsigned"), tmp_path / "cpu.onnx")
    with pytest.raises(GateError, match=r"cpu\.onnx: .*QuantizeLinear .*model\.0"):
        tensorrt.build(tmp_path / "cpu.onnx")


# --- bias correction


@pytest.mark.parametrize("kind", [{}, {"rest": "fp16"}, {"activations": "unsigned"}])
def test_bias_correction_takes_the_common_shift_back(fp32, ranges, kind):
    # Pictures clipped at a third: what the first convolution sees is darker on the whole.
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
    with pytest.raises(InputError, match="at least one picture"):
        correct_bias(fp32, plain, [])


# --- check: every rule is broken once


def node_named(model, name):
    return next(n for n in model.graph.node if n.name == name)


def rename(model, name, value):
    tensor(model, name).CopyFrom(numpy_helper.from_array(value, name))


def array(model, name):
    return numpy_helper.to_array(tensor(model, name))


def float_input(model):
    node = node_named(model, "/model.1/conv/Conv")
    node.input[0] = node.input[0].removesuffix("_dq")


def float_weight(model, fp32):
    node = node_named(model, "/model.1/conv/Conv")
    node.input[1] = "model.1.conv.weight"
    model.graph.initializer.append(tensor(fp32, "model.1.conv.weight"))


def shifted(model):
    rename(model, "images_zero_point", np.array(3, np.int8))


def negative_scale(model):
    rename(model, "images_scale", np.array(-0.1, np.float32))


def one_weight_scale(model):
    node = node_named(model, "/model.1/conv/Conv_weight_DequantizeLinear")
    rename(model, node.input[1], array(model, node.input[1])[:1].reshape(()))
    rename(model, node.input[2], np.array(0, np.int8))


def weight_zero_point(model):
    name = node_named(model, "/model.1/conv/Conv_weight_DequantizeLinear").input[2]
    rename(model, name, np.ones_like(array(model, name)))


def weight_of_minus_128(model):
    name = node_named(model, "/model.1/conv/Conv_weight_DequantizeLinear").input[0]
    values = array(model, name).copy()
    values.flat[0] = -128
    rename(model, name, values)


def float_side_of_add(model):
    node = node_named(model, "/model.2/m.0/Add")
    node.input[1] = node.input[1].removesuffix("_dq")


def other_scale_in_concat(model):
    name = node_named(model, "/model.11/Concat").input[1].removesuffix("_dq")
    rename(model, f"{name}_scale", array(model, f"{name}_scale") * np.float32(2))


def other_scale_after_move(model):
    name = node_named(model, "/model.11/Concat").output[0]
    rename(model, f"{name}_scale", array(model, f"{name}_scale") * np.float32(2))


def unequal_pair(model):
    dequantize = node_named(model, "/images/DequantizeLinear")
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "other_scale"))
    dequantize.input[1] = "other_scale"


def between_conv_and_silu(model):
    insert_pair(model, "/model.1/conv/Conv", ("/model.1/act/Sigmoid", "/model.1/act/Mul"))


def in_the_tail(model):
    insert_pair(model, "/model.22/dfl/Softmax", ("/model.22/dfl/conv/Conv",))


def before_a_last_convolution(model):
    insert_pair(model, "/model.22/cv2.0/cv2.0.1/act/Mul", ("/model.22/cv2.0/cv2.0.2/Conv",))


def insert_pair(model, after, readers):
    source = node_named(model, after)
    place = list(model.graph.node).index(source) + 1
    name = source.output[0]
    parameters = ["images_scale", "images_zero_point"]
    for node in (node_named(model, reader) for reader in readers):
        for i, entry in enumerate(node.input):
            if entry == name:
                node.input[i] = "x_dq"
    model.graph.node.insert(place, helper.make_node("DequantizeLinear", ["x_q", *parameters], ["x_dq"], name="dq"))
    model.graph.node.insert(place, helper.make_node("QuantizeLinear", [name, *parameters], ["x_q"], name="extra"))


@pytest.mark.parametrize(
    "damage, message",
    [
        (float_input, r"/model.1/conv/Conv \(layer model.1.conv\): only its weight is quantized"),
        (float_weight, "/model.1/conv/Conv .*only its input is quantized"),
        (shifted, "zero point 0 only"),
        (negative_scale, "not positive"),
        (one_weight_scale, "one scale per output channel"),
        (weight_zero_point, "not symmetric"),
        (weight_of_minus_128, "-128"),
        (float_side_of_add, "Add /model.2/m.0/Add .*1 of its 2 inputs"),
        (other_scale_in_concat, "Concat /model.11/Concat .*different scales"),
        (other_scale_after_move, "Concat /model.11/Concat .*another scale"),
        (unequal_pair, "/images/DequantizeLinear .*another scale"),
        (between_conv_and_silu, "extra .*between Conv and SiLU"),
        (in_the_tail, "extra .*follows the head"),
        (before_a_last_convolution, "only its input"),
    ],
)
def test_check_names_the_node_that_breaks_a_rule(fp32, int8, damage, message):
    model = copied(int8)
    damage(model, fp32) if damage is float_weight else damage(model)
    with pytest.raises(GateError, match=message):
        check(model)


def test_check_refuses_an_invalid_graph_and_one_that_quantizes_nothing(fp32, int8):
    with pytest.raises(GateError, match="nothing in it is quantized"):
        check(fp32)
    broken = copied(int8)
    rename(broken, "images_scale", np.array(0.1, np.float64))
    with pytest.raises(GateError, match="not valid ONNX"):
        check(broken)


# --- choose


def test_choose_takes_the_best_and_reports_all():
    made = []
    scores = {"mse": 0.5, "max": 0.4, "percentile": 0.6, "entropy": float("nan")}
    found = choose(lambda m: made.append(m) or m, scores.__getitem__)
    assert (found.method, found.model) == ("percentile", "percentile")
    assert made == list(quantize.METHODS) == list(found.scores)
    assert found.to_json()["scores"]["max"] == 0.4
    close = {"mse": 0.5, "max": 0.504, "percentile": 0.503, "entropy": 0.2}
    assert choose(lambda m: m, close.__getitem__).method == "mse"  # what differs by noise does not decide
    lost = {"mse": float("nan"), "max": 0.4, "percentile": 0.41, "entropy": 0.2}
    assert choose(lambda m: m, lost.__getitem__).method == "percentile"
    with pytest.raises(InputError, match="no calibration method"):
        choose(lambda m: m, lambda m: float("nan"))
