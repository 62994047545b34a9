"""FP32 ONNX -> typed FP16 ONNX.

Every type is written into the file, as TensorRT's strongly typed mode requires (optional since 10, the only mode since
11). ONNX Runtime runs the same file. Input and output stay FP32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgeprune.quantize.calibrate import Ranges
from edgeprune.quantize.graph import MOVES, Graph, copy_of, in_layers, layer_of, name_of, typed

__all__ = ["Fp16", "Kept", "fp32_nodes", "to_fp16"]

FP16_MAX = float(np.finfo(np.float16).max)
# Calibration images do not show the greatest possible activation: a layer within this factor of FP16_MAX stays FP32.
HEADROOM = 2.0
# Rounding weights to FP16 costs 2e-4 of their norm. An error a hundred times larger means that they are too small for
# FP16's smallest steps.
MAX_WEIGHT_ERROR = 0.02
# Inputs that ONNX specifies as FP32 for every type of data: regions and scales of Resize.
FP32_INPUTS = {"Resize": (1, 2)}
# Operators that pass on the values of their inputs; a Q/DQ pair changes them by at most one step.
CARRIERS = MOVES | {"QuantizeLinear", "DequantizeLinear"}
TYPES: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.FLOAT16: np.dtype(np.float16),
}


@dataclass(frozen=True)
class Kept:
    """A layer that stays FP32.

    Example: `Kept("model.4.cv1.conv", "weights reach 70312")`.

    Attributes:
        layer: Its name.
        reason: Why FP16 cannot hold it.
    """

    layer: str
    reason: str


@dataclass(frozen=True)
class Fp16:
    """A converted model.

    Attributes:
        model: The FP16 file.
        kept: The layers that stay FP32 because FP16 cannot hold them, without those of the tail.
    """

    model: onnx.ModelProto
    kept: tuple[Kept, ...]

    def to_json(self) -> dict[str, Any]:
        """The layers that stay FP32, without the model."""
        return {"kept_fp32": [{"layer": k.layer, "reason": k.reason} for k in self.kept]}


def to_fp16(model: onnx.ModelProto, ranges: Ranges | None = None, *, keep_fp32: Iterable[str] = ()) -> Fp16:
    """Convert the body of a detector (backbone, neck, head convolutions) to FP16; its tail stays FP32.

    The tail (DFL's softmax, anchors, strides, final sigmoid) stays FP32, because FP16 resolves only half a pixel above
    512.

    Args:
        model: FP32, plain or with Q/DQ; it is not changed.
        ranges: Measured activations; without them only the weights are checked.
        keep_fp32: Further layers that stay FP32; `model.22` names all layers inside it.
    """
    graph = Graph(model)
    kept = [*_named(graph, tuple(keep_fp32)), *_overflowing(graph, ranges)]
    stay = {output for output, _ in kept}
    half = {n.output[0] for n in graph.nodes if graph.in_body(n) and n.output[0] not in stay}
    reasons = {layer_of(graph.producer[output]): reason for output, reason in kept}
    return Fp16(typed(_Converter(graph, half).run()), tuple(Kept(layer, reason) for layer, reason in reasons.items()))


def fp32_nodes(model: onnx.ModelProto, ranges: Ranges) -> tuple[str, ...]:
    """The names of the nodes that FP16 cannot hold: the tail, and the nodes that would overflow.

    TensorRT 8 needs them, because there FP16 is a flag for the whole network, not a type in the file.

    Args:
        model: FP32, plain.
        ranges: Measured activations.
    """
    graph = Graph(model)
    overflowing = {output for output, _ in _overflowing(graph, ranges)}
    return tuple(n.name for n in graph.nodes if n.name and (not graph.in_body(n) or n.output[0] in overflowing))


def _named(graph: Graph, layers: tuple[str, ...]) -> list[tuple[str, str]]:
    return [
        (node.output[0], "requested")
        for node in graph.nodes
        if layers and graph.in_body(node) and in_layers(node, layers)
    ]


def _overflowing(graph: Graph, ranges: Ranges | None) -> list[tuple[str, str]]:
    """Nodes of the body that FP16 cannot hold: (first output, reason)."""
    reach = _reach(graph, ranges.amax()) if ranges is not None else {}
    overflowing = []
    for node in graph.nodes:
        if not graph.in_body(node):
            continue
        reason = _unfit_weights(graph, node)
        for name in (*node.input, *node.output):
            if reach.get(name, 0.0) * HEADROOM > FP16_MAX:
                reason = f"activations reach {reach[name]:.4g} (FP16 maximum: {FP16_MAX:.0f})"
        if reason:
            overflowing.append((node.output[0], reason))
    return overflowing


def _reach(graph: Graph, amax: dict[str, float]) -> dict[str, float]:
    """The greatest |x| of the measured tensors, and of the tensors that only pass on their values."""
    reach = dict(amax)
    for node in graph.nodes:
        if node.op_type in CARRIERS:
            carried = max((reach.get(name, 0.0) for name in node.input), default=0.0)
            reach.update((name, carried) for name in node.output if name not in amax)
    return reach


def _unfit_weights(graph: Graph, node: NodeProto) -> str | None:
    for name in node.input:
        if graph.types.get(name) != TensorProto.FLOAT or name not in graph.initializers:
            continue
        values = graph.array(name).astype(np.float64)
        if not values.size or node.op_type in FP32_INPUTS:
            continue
        if np.abs(values).max() > FP16_MAX:
            return f"weights reach {np.abs(values).max():.4g} (FP16 maximum: {FP16_MAX:.0f})"
        norm = np.linalg.norm(values)
        error = np.linalg.norm(values - values.astype(np.float16))
        # Only weights of convolutions: a bias that is practically zero (1e-12 x the activations) does not matter.
        if node.op_type == "Conv" and name == node.input[1] and norm > 0 and error > MAX_WEIGHT_ERROR * norm:
            return f"weights as small as {np.abs(values).max():.3g} lose {error / norm:.0%} of their norm in FP16"
    return None


class _Converter:
    """Rewrites a graph so that the nodes in `half` compute in FP16, with a Cast at each change of type."""

    def __init__(self, graph: Graph, half: set[str]):
        self.graph = graph
        self.half = half
        self.nodes: list[NodeProto] = []
        self.made: dict[tuple[str, int], str] = {}  # (tensor, type) -> the tensor's name in that type
        self.constants: dict[str, TensorProto] = {}
        self.types: dict[str, int] = dict(graph.types)

    def run(self) -> onnx.ModelProto:
        for node in self.graph.nodes:
            self._convert(node)
        result = copy_of(self.graph.model)
        outputs = {value.name for value in result.graph.output}
        for name in outputs:
            if self.types[name] != self.graph.types[name]:
                raise AssertionError(f"output {name} changed its type")  # the tail is never empty
        del result.graph.node[:], result.graph.initializer[:]
        result.graph.node.extend(self.nodes)
        result.graph.initializer.extend(self.constants.values())
        return result

    def _convert(self, node: NodeProto) -> None:
        wanted = TensorProto.FLOAT16 if node.output[0] in self.half else TensorProto.FLOAT
        changed = NodeProto()
        changed.CopyFrom(node)
        for i, name in enumerate(node.input):
            if self.types.get(name) in TYPES and name:
                fixed = i in FP32_INPUTS.get(node.op_type, ())
                changed.input[i] = self._as(name, TensorProto.FLOAT if fixed else wanted)
            elif name in self.graph.initializers:
                self.constants[name] = self.graph.initializers[name]
        for name in node.output:
            if self.graph.types.get(name) in TYPES:
                self.types[name] = wanted
        self.nodes.append(changed)

    def _as(self, name: str, wanted: int) -> str:
        """The name of a tensor in the wanted type; adds the Cast or the constant on first use."""
        key = (name, wanted)
        if key in self.made:
            return self.made[key]
        if self.types[name] == wanted:
            self.made[key] = name
            if name in self.graph.initializers:
                self.constants[name] = self.graph.initializers[name]
            return name
        suffix = "_fp16" if wanted == TensorProto.FLOAT16 else "_fp32"
        if name in self.graph.initializers:
            values = self.graph.array(name).astype(TYPES[wanted])
            self.constants[name + suffix] = numpy_helper.from_array(values, name + suffix)
        else:
            label = name_of(name, f"Cast{suffix}")
            self.nodes.append(helper.make_node("Cast", [name], [name + suffix], name=label, to=wanted))
        self.made[key] = name + suffix
        return name + suffix
