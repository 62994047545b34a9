"""An index of an ONNX graph: the producer and the readers of each tensor, and the end of the detector's body.

The *body* of a detector is everything up to the last convolutions of its head. The *tail* follows them: DFL, anchors,
strides, the final sigmoid. In YOLOv8n (64 Conv) the last convolutions are `model.22.cv2.{0,1,2}.2` and
`model.22.cv3.{0,1,2}.2`; the 64th Conv is DFL's fixed sum, which belongs to the tail.

The module does not depend on precisions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from edgeprune_device.engine.layers import layer_of_node
from onnx import NodeProto, TensorProto, numpy_helper

__all__ = ["MOVES", "Graph", "copy_of", "in_layers", "layer_of", "name_constants", "name_of", "typed"]

# Operators that only move values: their outputs have the scale of their inputs.
MOVES = frozenset({"Concat", "Split", "Slice", "MaxPool", "Resize"})
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})


class Graph:
    """A read-only index of a model whose constants are initializers.

    A node is identified by its first output, which is unique in a graph and hashable; a NodeProto is not hashable.

    Attributes:
        model: The model.
        nodes: Its nodes, in order.
        initializers: Name -> constant.
        producer: Tensor -> the node that computes it.
        readers: Tensor -> the nodes that read it.
        types: Tensor -> its ONNX element type.
        shapes: Tensor -> its shape.
        last_convolutions: The head's last convolutions, by first output.
        body: The nodes of the body, by first output.
    """

    def __init__(self, model: onnx.ModelProto):
        self.model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.initializers: dict[str, TensorProto] = {t.name: t for t in model.graph.initializer}
        self.producer: dict[str, NodeProto] = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.readers[name].append(node)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
        self.types: dict[str, int] = {name: t.data_type for name, t in self.initializers.items()}
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(t.dims) for name, t in self.initializers.items()}
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            self.types[value.name] = value.type.tensor_type.elem_type
            self.shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        self.last_convolutions = self._last_convolutions()
        self.body = self._ancestors(self.last_convolutions)

    def is_activation(self, name: str) -> bool:
        """Whether a tensor is a floating-point value computed from the image."""
        return bool(name) and name not in self.initializers and self.types.get(name) in FLOATS

    def array(self, name: str) -> npt.NDArray[Any]:
        """The values of an initializer."""
        return numpy_helper.to_array(self.initializers[name])

    def activations(self, node: NodeProto) -> list[str]:
        """The inputs of a node that are computed from the image."""
        return [name for name in node.input if self.is_activation(name)]

    def macs(self, node: NodeProto) -> int:
        """Multiply-accumulates of one Conv: output values x weights per output channel."""
        _, per_group, *kernel = self.shapes[node.input[1]]
        return int(np.prod(self.shapes[node.output[0]])) * per_group * int(np.prod(kernel))

    def in_body(self, node: NodeProto) -> bool:
        """Whether a node belongs to the body."""
        return node.output[0] in self.body

    def body_convolutions(self) -> list[NodeProto]:
        """The body's convolutions without the last ones, in graph order: these may become INT8."""
        return [
            node
            for node in self.nodes
            if node.op_type == "Conv" and self.in_body(node) and node.output[0] not in self.last_convolutions
        ]

    def is_silu(self, name: str) -> bool:
        """Whether x * sigmoid(x) reads a tensor, and no other node does."""
        readers = self.readers[name]
        gate = next((n for n in readers if n.op_type == "Sigmoid"), None)
        if gate is None or len(readers) != 2:
            return False
        other = next(n for n in readers if n is not gate)
        return other.op_type == "Mul" and set(other.input) == {name, gate.output[0]}

    def _last_convolutions(self) -> frozenset[str]:
        """Learned convolutions without a learned convolution after them."""
        followed: set[str] = set()  # tensors that lead to a learned convolution
        last = set()
        for node in reversed(self.nodes):
            reaches = any(name in followed for name in node.output)
            learned = node.op_type == "Conv" and not self._is_dfl(node)
            if learned and not reaches:
                last.add(node.output[0])
            if learned or reaches:
                followed.update(node.input)
        return frozenset(last)

    def _is_dfl(self, node: NodeProto) -> bool:
        """Whether a node is DFL: a Conv with one output channel and the fixed weights 0, 1, 2, …."""
        weight = self._source_of_weight(node)
        if weight is None or len(weight.dims) != 4 or weight.dims[0] != 1 or tuple(weight.dims[2:]) != (1, 1):
            return False
        values = numpy_helper.to_array(weight).ravel()
        return bool(np.array_equal(values, np.arange(len(values))))

    def _source_of_weight(self, node: NodeProto) -> TensorProto | None:
        """The initializer of a Conv's weight, also through a Cast or a DequantizeLinear."""
        name = node.input[1]
        while name in self.producer:
            name = self.producer[name].input[0]
        return self.initializers.get(name)

    def _ancestors(self, outputs: Iterable[str]) -> frozenset[str]:
        """The nodes, by first output, from which the given tensors are computed, including the producers themselves."""
        ancestors: set[str] = set()
        pending = list(outputs)
        while pending:
            node = self.producer.get(pending.pop())
            if node is not None and node.output[0] not in ancestors:
                ancestors.add(node.output[0])
                pending.extend(node.input)
        return frozenset(ancestors)


def layer_of(node: NodeProto) -> str:
    """The model's layer that a node came from."""
    return layer_of_node(node.name or node.output[0])


def name_of(tensor: str, what: str) -> str:
    """The name of a node that is inserted after a tensor, in the layer that makes the tensor.

    `/model.0/act/Mul_output_0` -> `/model.0/act/Mul_output_0_Cast`: viewers group nodes by the path in their names.
    """
    return f"{tensor}_{what}" if tensor.startswith("/") else f"/{tensor}/{what}"


def name_constants(model: onnx.ModelProto) -> None:
    """Name the constants that onnxsim and ONNX's converter numbered (`_v_403`) after their first reader, in place."""
    for tensor in [t for t in model.graph.initializer if t.name.startswith("_v_")]:
        readers = [(n, i) for n in model.graph.node for i, name in enumerate(n.input) if name == tensor.name]
        if readers:
            tensor.name = name_of(readers[0][0].name, f"input{readers[0][1]}")
        for node, place in readers:
            node.input[place] = tensor.name


def in_layers(node: NodeProto, layers: Iterable[str]) -> bool:
    """Whether a node belongs to one of the named layers; `model.22` names all layers inside it."""
    own = layer_of(node)
    return any(own == layer or own.startswith(layer + ".") for layer in layers)


def typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types and shapes of its inner tensors, which viewers show."""
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the inferred types of inner tensors, for a caller that changes them."""
    clone = onnx.ModelProto()
    clone.CopyFrom(model)
    del clone.graph.value_info[:]
    return clone
