"""Bias correction: compensates the mean shift caused by rounding in the biases.

Rounding and clipping shift the mean of each output channel of a convolution, and the shifts of sixty layers add up
(YOLOv8n, HIT-UAV: three quarters of the scores' INT8 error is one common downward shift). Source: Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019; here the means are measured, not
derived from batch norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from edgeprune_device.errors import InputError
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgeprune.quantize.graph import Graph, copy_of
from edgeprune.quantize.reference import reference_session

__all__ = ["bias_shifts", "correct_bias", "shifted"]


def correct_bias(
    model: onnx.ModelProto, quantized: onnx.ModelProto, pictures: Iterable[npt.NDArray[np.float32]], *, threads: int = 1
) -> onnx.ModelProto:
    """Correct the biases of a quantized model, so that each channel of a convolution's output keeps its mean.

    Args:
        model: The FP32 model that `quantized` was made from.
        quantized: The quantized model, in any style; it is not changed.
        pictures: Each (1, 3, h, w) float32, RGB in 0..1; 16 images are enough.
        threads: The number of inference threads.

    Raises:
        InputError: No image is given, or `quantized` was not made from `model`.
    """
    return shifted(quantized, bias_shifts(model, quantized, pictures, threads=threads))


def bias_shifts(
    model: onnx.ModelProto, quantized: onnx.ModelProto, pictures: Iterable[npt.NDArray[np.float32]], *, threads: int = 1
) -> dict[str, npt.NDArray[np.float64]]:
    """Measure how far rounding lowers the mean of each convolution's output.

    Each convolution is measured alone: its quantized twin reads the input that the FP32 network computes. One pass
    therefore measures all of them, and a shift does not depend on the other quantized layers.

    Args:
        model: The FP32 model that `quantized` was made from.
        quantized: The quantized model.
        pictures: Each (1, 3, h, w) float32, RGB in 0..1.
        threads: The number of inference threads.

    Returns:
        Name of the convolution's output -> (channels,) float64.

    Raises:
        InputError: No image is given, or `quantized` was not made from `model`.
    """
    plain, graph = Graph(model), Graph(quantized)
    convolutions = _quantized_convolutions(graph)
    missing = next((n for n in convolutions if n.output[0] not in plain.producer), None)
    if missing is not None:
        raise InputError(f"FP32 model: no node {missing.name}; pass the model that was quantized")
    probe = _probe(plain, graph, convolutions)
    session = reference_session(probe, threads=threads)
    entry = session.get_inputs()[0].name
    sums, count = [np.zeros(1)] * len(convolutions), 0
    for picture in pictures:
        shifts = session.run(None, {entry: np.ascontiguousarray(picture, np.float32)})
        sums = [total + shift.astype(np.float64) for total, shift in zip(sums, shifts)]
        count += 1
    if not count:
        raise InputError("bias correction: no images; pass at least one image")
    return {node.output[0]: total / count for node, total in zip(convolutions, sums)}


def shifted(quantized: onnx.ModelProto, shifts: Mapping[str, npt.NDArray[np.float64]]) -> onnx.ModelProto:
    """The quantized model with shifts added to the biases of its quantized convolutions.

    Args:
        quantized: The quantized model; it is not changed.
        shifts: The result of `bias_shifts`.
    """
    graph = Graph(quantized)
    result = onnx.ModelProto()
    result.CopyFrom(quantized)
    nodes = {node.output[0]: node for node in result.graph.node}
    for node in _quantized_convolutions(graph):
        _add_to_bias(result, graph, nodes[node.output[0]], shifts[node.output[0]])
    return result


def _quantized_convolutions(graph: Graph) -> list[NodeProto]:
    return [n for n in graph.nodes if n.op_type == "Conv" and _is_dequantized(graph, n.input[1])]


def _is_dequantized(graph: Graph, name: str) -> bool:
    """Whether a DequantizeLinear makes a tensor."""
    node = graph.producer.get(name)
    return node is not None and node.op_type == "DequantizeLinear"


def _probe(plain: Graph, graph: Graph, convolutions: list[NodeProto]) -> onnx.ModelProto:
    """The FP32 network with one output for each convolution: the channel means of its output minus those of its
    quantized twin's.
    """
    probe = copy_of(plain.model)
    del probe.graph.output[:]
    add, constant = probe.graph.node.append, probe.graph.initializer.append
    for i, node in enumerate(convolutions):
        original = plain.producer[node.output[0]]
        grid = graph.producer[node.input[0]]  # a DequantizeLinear, as `check` ensures
        x, w, scale, zero, dequantized, weight = (f"ep_{kind}{i}" for kind in ("q", "w", "s", "z", "dq", "c"))
        constant(numpy_helper.from_array(graph.array(grid.input[1]).astype(np.float32), scale))
        constant(numpy_helper.from_array(graph.array(grid.input[2]), zero))
        constant(numpy_helper.from_array(_weights(graph, node), w))
        add(helper.make_node("QuantizeLinear", [original.input[0], scale, zero], [x]))
        add(helper.make_node("DequantizeLinear", [x, scale, zero], [dequantized]))
        twin = NodeProto()
        twin.CopyFrom(original)
        del twin.input[:], twin.output[:]
        twin.name = f"ep_twin{i}"
        twin.input.extend([dequantized, w, *original.input[2:]])
        twin.output.append(weight)
        add(twin)
        for name in (original.output[0], weight):
            add(helper.make_node("ReduceMean", [name], [f"ep_{i}_mean_{name}"], axes=[0, 2, 3], keepdims=0))
        add(helper.make_node("Sub", [f"ep_{i}_mean_{original.output[0]}", f"ep_{i}_mean_{weight}"], [f"ep_shift{i}"]))
        probe.graph.output.append(helper.make_tensor_value_info(f"ep_shift{i}", TensorProto.FLOAT, None))
    return probe


def _weights(graph: Graph, node: NodeProto) -> npt.NDArray[np.float32]:
    """The dequantized weights of a quantized convolution, float32 (out, in, kh, kw)."""
    whole, scale, _ = (graph.array(name) for name in graph.producer[node.input[1]].input)
    return whole.astype(np.float32) * scale.astype(np.float32).reshape(-1, *[1] * (whole.ndim - 1))


def _add_to_bias(model: onnx.ModelProto, graph: Graph, node: NodeProto, shift: npt.NDArray[np.float64]) -> None:
    """Give the node its own bias, because layers may share one, in the type in which the node computes."""
    dtype = np.float16 if graph.types[node.output[0]] == TensorProto.FLOAT16 else np.float32
    before = graph.array(node.input[2]).astype(np.float64) if len(node.input) > 2 else 0.0
    name = f"{node.output[0]}_bias"
    model.graph.initializer.append(numpy_helper.from_array((before + shift).astype(dtype), name))
    del node.input[2:]
    node.input.append(name)
