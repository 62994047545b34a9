"""Verifies the rules of a quantized graph on the graph itself.

A build with TensorRT for RTX proves that a file parses and that its types are consistent. It does not show which
kernels a Jetson will fuse. These rules are the conditions for that fusion; an error names the operator that breaks one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from edgeprune_device.errors import GateError
from onnx import NodeProto, TensorProto

from edgeprune.quantize.graph import MOVES, Graph, layer_of

__all__ = ["check", "int8_share"]

INTEGERS = frozenset({TensorProto.INT8, TensorProto.UINT8})


def int8_share(model: onnx.ModelProto) -> float:
    """The share of all Conv multiply-accumulates whose two inputs are 8-bit integers, 0..1."""
    graph = Graph(model)
    macs = {n.output[0]: graph.macs(n) for n in graph.nodes if n.op_type == "Conv"}
    whole = sum(m for o, m in macs.items() if all(_quantized(graph, i) for i in graph.producer[o].input[:2]))
    return whole / sum(macs.values()) if macs else 0.0


def check(model: onnx.ModelProto, *, activations: str = "signed") -> None:
    """Verify the rules of a quantized graph.

    Always: the ONNX is valid with consistent types; each DQ reads a Q or int8 weights; scales are positive and finite;
    weights are int8 and symmetric with one scale per output channel; a Conv with quantized weights has a quantized
    input; a bias is float; all inputs of an Add or a Concat are quantized or none; a moved value keeps its scale; the
    head's last convolutions and its tail are float.

    Args:
        model: The quantized file.
        activations: `signed` (TensorRT) adds rules: activations are int8 with zero point 0, no Q is between Conv and
            SiLU, and a float Conv reads float. `unsigned` adds none.

    Raises:
        GateError: A rule is broken; the message names the first operator that breaks it.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
        graph = Graph(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GateError(f"quantized graph: not valid ONNX: {' '.join(str(error).split())}") from error
    rules = [_pairs, _weights, _joins, _moves, _tail]
    if activations == "signed":
        rules += [_inputs, _symmetric, _silu]
    for rule in rules:
        for node, problem in rule(graph):
            where = f"{node.op_type} {node.name or node.output[0]} (layer {layer_of(node)})"
            raise GateError(f"quantized graph: {where}: {problem}")
    if not any(n.op_type == "QuantizeLinear" for n in graph.nodes):
        raise GateError("quantized graph: no operator is quantized")


Problems = Iterator[tuple[NodeProto, str]]


def _quantized(graph: Graph, name: str) -> bool:
    """Whether a tensor comes out of a DequantizeLinear."""
    return name in graph.producer and graph.producer[name].op_type == "DequantizeLinear"


def _grid(graph: Graph, node: NodeProto) -> tuple[list[float], list[int]]:
    """Scale and zero point of a Q or DQ, comparable across types."""
    scale, zero_point = (graph.array(name) for name in node.input[1:])
    return scale.astype(np.float64).ravel().tolist(), zero_point.ravel().tolist()


def _pairs(graph: Graph) -> Problems:
    for node in graph.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if len(node.input) != 3 or any(name not in graph.initializers for name in node.input[1:]):
            yield node, "scale and zero point must be constants of the file"
            continue
        scale = graph.array(node.input[1])
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            yield node, "scale not positive and finite"
        if node.op_type == "DequantizeLinear" and node.input[0] not in graph.initializers:
            source = graph.producer.get(node.input[0])
            if source is None or source.op_type != "QuantizeLinear":
                yield node, "invalid input (expected the output of a QuantizeLinear, or weights)"
            elif _grid(graph, source) != _grid(graph, node):
                yield node, "scale or zero point differs from the preceding QuantizeLinear"


def _weights(graph: Graph) -> Problems:
    for node in graph.nodes:
        if node.op_type != "Conv":
            continue
        if len(node.input) > 2 and _quantized(graph, node.input[2]):
            yield node, "bias quantized, but TensorRT refuses an int32 bias"
        if _quantized(graph, node.input[1]):
            if not _quantized(graph, node.input[0]):
                yield node, "only the weight is quantized (expected DQ on both inputs of a Conv)"
            yield from _weight(graph, node)


def _inputs(graph: Graph) -> Problems:
    """Both inputs of a Conv are quantized, or none. On a CPU a float Conv may read the result of an integer kernel; in
    TensorRT this would lose precision and gain nothing.
    """
    for node in graph.nodes:
        if node.op_type == "Conv" and _quantized(graph, node.input[0]) and not _quantized(graph, node.input[1]):
            yield node, "only the input is quantized (expected DQ on both inputs of a Conv)"


def _weight(graph: Graph, node: NodeProto) -> Problems:
    source = graph.producer[node.input[1]]
    weight, scale, zero = source.input
    axis = next((a.i for a in source.attribute if a.name == "axis"), 1)
    if graph.types.get(weight) != TensorProto.INT8 or weight not in graph.initializers:
        yield node, "weight not an int8 constant"
    elif graph.shapes[scale] != (graph.shapes[weight][0],) or axis != 0:
        yield node, "invalid scale of the weight (expected one scale per output channel, axis 0)"
    elif np.any(graph.array(zero)):
        yield node, "weight not symmetric (expected zero point 0)"
    elif graph.array(weight).min() < -127:
        yield node, "weight out of range (found -128, expected -127 to 127)"


def _joins(graph: Graph) -> Problems:
    """The inputs of residual adds and concatenations: all are quantized or none; those of a Concat have one scale."""
    for node in graph.nodes:
        fed = [_quantized(graph, name) for name in graph.activations(node)]
        if node.op_type not in ("Add", "Concat") or not any(fed):
            continue
        if not all(fed):
            yield node, f"{fed.count(False)} of {len(fed)} inputs are not quantized"
        elif node.op_type == "Concat":
            first, *others = [_grid(graph, graph.producer[name]) for name in graph.activations(node)]
            if any(other != first for other in others):
                yield node, "the inputs have different scales"


def _moves(graph: Graph) -> Problems:
    for node in graph.nodes:
        inputs = graph.activations(node)
        if node.op_type not in MOVES or not inputs or not _quantized(graph, inputs[0]):
            continue
        before = _grid(graph, graph.producer[inputs[0]])
        for reader in (reader for name in node.output for reader in graph.readers[name]):
            if reader.op_type == "QuantizeLinear" and _grid(graph, reader) != before:
                yield node, "input and output have different scales, but the operator only moves values"


def _tail(graph: Graph) -> Problems:
    for node in graph.nodes:
        if node.output[0] in graph.last_convolutions and _quantized(graph, node.input[1]):
            yield node, "the head's last convolutions must stay float"
        if node.op_type == "QuantizeLinear" and not graph.in_body(node):
            yield node, "quantized after the head's last convolutions, or not read by any node"


def _symmetric(graph: Graph) -> Problems:
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            if graph.types.get(node.output[0]) != TensorProto.INT8:
                yield node, "unsupported type of the activation (TensorRT accepts only int8)"
            elif np.any(graph.array(node.input[2])):
                yield node, "unsupported zero point (TensorRT accepts only 0)"


def _silu(graph: Graph) -> Problems:
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear":
            continue
        source = graph.producer.get(node.input[0])
        if source is None or source.op_type != "Conv":
            continue
        dequantized = [d.output[0] for d in graph.readers[node.output[0]]]
        if any(r.op_type == "Sigmoid" for name in (node.input[0], *dequantized) for r in graph.readers[name]):
            yield node, "placed between Conv and SiLU, which TensorRT fuses into one kernel"
