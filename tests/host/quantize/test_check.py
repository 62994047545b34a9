"""check: one broken graph for each rule."""

import numpy as np
import pytest
from edgeprune_device.errors import GateError
from onnx import helper, numpy_helper

from edgeprune.quantize import check

from .graphs import copied, tensor


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
        (float_input, r"/model.1/conv/Conv \(layer model.1.conv\): only the weight is quantized"),
        (float_weight, "/model.1/conv/Conv .*only the input is quantized"),
        (shifted, "unsupported zero point"),
        (negative_scale, "not positive"),
        (one_weight_scale, "one scale per output channel"),
        (weight_zero_point, "not symmetric"),
        (weight_of_minus_128, "-128"),
        (float_side_of_add, "Add /model.2/m.0/Add .*1 of 2 inputs"),
        (other_scale_in_concat, "Concat /model.11/Concat .*different scales"),
        (other_scale_after_move, "Concat /model.11/Concat .*different scales"),
        (unequal_pair, "/images/DequantizeLinear .*differs from"),
        (between_conv_and_silu, "extra .*between Conv and SiLU"),
        (in_the_tail, "extra .*after the head"),
        (before_a_last_convolution, "only the input"),
    ],
)
def test_check_names_the_node_that_breaks_a_rule(fp32, int8, damage, message):
    model = copied(int8)
    damage(model, fp32) if damage is float_weight else damage(model)
    with pytest.raises(GateError, match=message):
        check(model)


def test_check_refuses_an_invalid_graph_and_one_that_quantizes_nothing(fp32, int8):
    with pytest.raises(GateError, match="no operator is quantized"):
        check(fp32)
    broken = copied(int8)
    rename(broken, "images_scale", np.array(0.1, np.float64))
    with pytest.raises(GateError, match="not valid ONNX"):
        check(broken)
