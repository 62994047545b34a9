"""FP32 ONNX -> explicitly quantized (Q/DQ) ONNX, by TensorRT's rules or for ONNX Runtime's CPU kernels.

There are two styles, because no file is fast on both (on a CPU, signed ran at 0.7x and unsigned at 2.3x the speed of
FP32):

`signed`    TensorRT. int8, zero point 0. Q/DQ are placed where a fused kernel ends: on the inputs of convolutions, of
            residual adds and of concatenations; never between Conv and SiLU.
`unsigned`  ONNX Runtime on a CPU. uint8 with a zero point. Q/DQ on every tensor, also between Conv and SiLU: an integer
            kernel needs a quantized input and a quantized output.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from edgeprune_device.errors import InputError
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgeprune.quantize.calibrate import Ranges
from edgeprune.quantize.fp16 import to_fp16
from edgeprune.quantize.graph import MOVES, Graph, copy_of, in_layers, name_constants, name_of, typed

__all__ = ["Grid", "signed_grids", "to_int8"]

# The first opset whose DequantizeLinear writes FP16; TensorRT reads it from 10.0.
FP16_OPSET = 19
# For x below this, x * sigmoid(x) is within 0.003 of zero, so steps for such values would be wasted.
SILU_LOW = -8.0
# Operators with uint8 kernels in ONNX Runtime's CPU provider.
INTEGER_OPS = MOVES | {"Conv", "Sigmoid", "Mul", "Add"}


@dataclass(frozen=True)
class Grid:
    """The values that a quantized tensor can take: scale x (q - zero_point), with q in the range of the type.

    Attributes:
        scale: The step.
        zero_point: The q of 0.
        dtype: np.int8 or np.uint8.
    """

    scale: float
    zero_point: int
    dtype: type[np.int8] | type[np.uint8]

    @classmethod
    def signed(cls, threshold: float) -> Grid:
        """The symmetric int8 grid over [-threshold, threshold]."""
        return cls(_positive(threshold) / 127, 0, np.int8)

    @classmethod
    def unsigned(cls, low: float, high: float) -> Grid:
        """The uint8 grid over [low, high], extended to include 0."""
        low, high = min(low, 0.0), max(high, 0.0)  # zero must be exact: it is the padding
        scale = _positive(high - low) / 255
        return cls(scale, int(np.clip(round(-low / scale), 0, 255)), np.uint8)


def to_int8(
    model: onnx.ModelProto,
    ranges: Ranges,
    *,
    method: str = "mse",
    activations: str = "signed",
    rest: str = "fp32",
    exclude: Iterable[str] = (),
    reduce_range: bool = False,
) -> onnx.ModelProto:
    """Quantize the body of a detector; the head's last convolutions and its tail stay float.

    Weights are int8, symmetric, with one scale per output channel; biases stay float.

    Args:
        model: FP32, opset 17, as `exporting.to_onnx` writes it; it is not changed.
        ranges: The ranges of that same model.
        method: How the ranges are clipped (`calibrate.METHODS`).
        activations: `signed` for TensorRT, `unsigned` for ONNX Runtime on a CPU.
        rest: The type of all other operators: `fp32` keeps the opset; `fp16` raises it to 19 (TensorRT >= 10, strongly
            typed).
        exclude: Layers whose convolutions stay float; `model.22` names all layers inside it.
        reduce_range: Store weights in 7 bits, for unsigned activations on a CPU whose kernels saturate with 8 bits
            (`Environment.saturates`).

    Raises:
        InputError: An argument has an unknown value, or the ranges belong to another model.
    """
    if activations not in ("signed", "unsigned") or rest not in ("fp32", "fp16"):
        raise InputError(
            f"INT8 style: unknown value (found activations={activations!r}, rest={rest!r}); use signed or unsigned, "
            "and fp32 or fp16"
        )
    graph = Graph(model)
    convolutions, reads, grids = _place(graph, ranges, activations, method, tuple(exclude))
    if rest == "fp16":
        grids = {name: _fp16_grid(grid) for name, grid in grids.items()}
    bits = 7 if reduce_range else 8
    quantized = _Writer(graph, reads, grids, bits=bits, fp16_scales=rest == "fp16").run(convolutions)
    if rest == "fp32":
        return typed(quantized)
    raised = _raise_opset(quantized, FP16_OPSET)
    return to_fp16(raised, ranges).model


def signed_grids(model: onnx.ModelProto, ranges: Ranges, *, method: str = "mse") -> tuple[Reads, dict[str, Grid]]:
    """The tensors that `to_int8` rounds with signed activations, and their grids.

    Quantization-aware training rounds in the same places (training/qat.py).

    Args:
        model: FP32, opset 17.
        ranges: The ranges of that same model.
        method: How the ranges are clipped.

    Returns:
        (tensor -> the nodes, by first output, that read it rounded; tensor -> its grid).
    """
    _, reads, grids = _place(Graph(model), ranges, "signed", method, ())
    return reads, grids


def _place(
    graph: Graph, ranges: Ranges, activations: str, method: str, exclude: tuple[str, ...]
) -> tuple[set[str], Reads, dict[str, Grid]]:
    """The convolutions that become INT8, the readers of each rounded tensor, and the grid of each tensor."""
    convolutions = {n.output[0] for n in graph.body_convolutions() if not in_layers(n, exclude)}
    style = _Signed if activations == "signed" else _Unsigned
    reads = style.reads(graph, convolutions)
    return convolutions, reads, style.grids(graph, reads, _Families(graph), ranges, method)


class _Families:
    """Tensors that must share one grid, because an operator only moves values between them."""

    def __init__(self, graph: Graph):
        self.parent: dict[str, str] = {}
        for node in graph.nodes:
            if graph.in_body(node) and node.op_type in MOVES:
                tensors = [*graph.activations(node), *filter(None, node.output)]
                for other in tensors[1:]:
                    self.parent[self.find(other)] = self.find(tensors[0])

    def find(self, name: str) -> str:
        while self.parent.get(name, name) != name:
            name = self.parent[name]
        return name

    def members(self, names: Iterable[str]) -> dict[str, list[str]]:
        """The given tensors by family."""
        by_root: dict[str, list[str]] = {}
        for name in names:
            by_root.setdefault(self.find(name), []).append(name)
        return by_root


Reads = dict[str, set[str]]  # tensor -> the nodes (by first output) that read it dequantized


class _Signed:
    """The placement of Q/DQ for TensorRT."""

    @staticmethod
    def reads(graph: Graph, convolutions: set[str]) -> Reads:
        """Convolutions read INT8, and so does every residual add, concatenation and move that leads to one."""
        reads: Reads = {}
        for node in reversed(graph.nodes):
            if not graph.in_body(node):
                continue
            quantized_out = any(name in reads for name in node.output)
            joins = node.op_type in MOVES or (node.op_type == "Add" and len(graph.activations(node)) == 2)
            if node.output[0] in convolutions:
                reads.setdefault(node.input[0], set()).add(node.output[0])
            elif quantized_out and joins:
                for name in graph.activations(node):
                    reads.setdefault(name, set()).add(node.output[0])
        return reads

    @staticmethod
    def grids(graph: Graph, reads: Reads, families: _Families, ranges: Ranges, method: str) -> dict[str, Grid]:
        thresholds = ranges.thresholds(method)
        measured = families.members(thresholds)
        grids = {}
        for name in reads:
            members = measured.get(families.find(name), ())
            grids[name] = Grid.signed(_finite(name, max((thresholds[m] for m in members), default=np.nan)))
        return grids


class _Unsigned:
    """The placement of Q/DQ for ONNX Runtime's CPU kernels."""

    @staticmethod
    def reads(graph: Graph, convolutions: set[str]) -> Reads:
        """All inputs and outputs of each operator that has a uint8 kernel and quantized inputs."""
        integer: set[str] = set()  # tensors that integer kernels compute
        nodes = []
        for node in graph.nodes:
            inputs = graph.activations(node)
            if not graph.in_body(node) or node.op_type not in INTEGER_OPS:
                continue
            if node.op_type == "Conv":
                fits = node.output[0] in convolutions
            elif node.op_type in ("Concat", "Add"):
                fits = len(inputs) > 1 and any(name in integer for name in inputs)
            else:
                fits = len(inputs) == _arity(node) and all(name in integer for name in inputs)
            if fits:
                integer.update(node.output)
                nodes.append(node)
        reads: Reads = {}
        for node in nodes:
            for name in graph.activations(node):
                reads.setdefault(name, set()).add(node.output[0])
            for name in node.output:
                # A float reader also reads the quantized value, because the kernel computes no other.
                reads.setdefault(name, set()).update(n.output[0] for n in graph.readers[name])
        return reads

    @staticmethod
    def grids(graph: Graph, reads: Reads, families: _Families, ranges: Ranges, method: str) -> dict[str, Grid]:
        thresholds = ranges.thresholds(method)
        measured = families.members(thresholds)
        grids = {}
        for name in reads:
            if name in graph.producer and graph.producer[name].op_type == "Sigmoid":
                grids[name] = Grid(1 / 256, 0, np.uint8)
                continue
            ends = [_ends(graph, ranges, member, thresholds) for member in measured.get(families.find(name), ())]
            low = min((low for low, _ in ends), default=np.nan)
            high = max((high for _, high in ends), default=np.nan)
            grids[name] = Grid.unsigned(_finite(name, low), _finite(name, high))
        return grids


def _ends(graph: Graph, ranges: Ranges, name: str, thresholds: dict[str, float]) -> tuple[float, float]:
    """The clipped range of one tensor, low and high."""
    r, threshold = ranges.tensors[name], thresholds[name]
    low, high = max(r.low, -threshold), min(r.high, threshold)
    return (max(low, SILU_LOW) if graph.is_silu(name) else low), high


def _arity(node: NodeProto) -> int:
    """The number of activations that an operator reads; a product with a constant reads fewer and stays float."""
    return 2 if node.op_type == "Mul" else 1


class _Writer:
    """Writes the Q/DQ pairs into a copy of the graph."""

    def __init__(self, graph: Graph, reads: Reads, grids: dict[str, Grid], *, bits: int, fp16_scales: bool):
        self.graph, self.reads, self.grids = graph, reads, grids
        self.top = 2 ** (bits - 1) - 1
        self.fp16_scales = fp16_scales
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.weights: dict[str, str] = {}

    def run(self, convolutions: set[str]) -> onnx.ModelProto:
        for entry in self.graph.model.graph.input:
            self._pair(entry.name)
        for node in self.graph.nodes:
            changed = NodeProto()
            changed.CopyFrom(node)
            for i, name in enumerate(node.input):
                if node.output[0] in self.reads.get(name, ()):
                    changed.input[i] = f"{name}_dq"
            if node.output[0] in convolutions:
                changed.input[1] = self._weight(node.input[1], node.name)
            self.nodes.append(changed)
            for name in node.output:
                self._pair(name)
        result = copy_of(self.graph.model)
        used = {name for node in self.nodes for name in node.input}
        kept = [t for t in self.graph.model.graph.initializer if t.name in used]
        del result.graph.node[:], result.graph.initializer[:]
        result.graph.node.extend(self.nodes)
        result.graph.initializer.extend([*kept, *self.constants.values()])
        return result

    def _pair(self, name: str) -> None:
        """Write Q and DQ of an activation if any node reads it dequantized."""
        if not self.reads.get(name):
            return
        grid = self.grids[name]
        parameters = [f"{name}_scale", f"{name}_zero_point"]
        self._constant(parameters[0], np.array(grid.scale, np.float32))
        self._constant(parameters[1], np.array(grid.zero_point, grid.dtype))
        for op, entry, result in (("Quantize", name, f"{name}_q"), ("Dequantize", f"{name}_q", f"{name}_dq")):
            self.nodes.append(
                helper.make_node(f"{op}Linear", [entry, *parameters], [result], name=name_of(name, f"{op}Linear"))
            )

    def _weight(self, name: str, convolution: str) -> str:
        """The dequantized weight of a convolution: int8 (out, in, kh, kw) with one scale per output channel."""
        if name in self.weights:
            return self.weights[name]
        values = self.graph.array(name).astype(np.float64)
        amax = np.abs(values).reshape(len(values), -1).max(1)
        # A channel of zeros may have any scale.
        scales = np.where(amax > 0, amax, 1.0) / self.top
        # The scale is rounded up to a value that the file can hold before the weights are divided by it.
        scales = _up_to_fp16(scales) if self.fp16_scales else scales.astype(np.float32).astype(np.float64)
        whole = np.rint(values / scales.reshape(-1, *[1] * (values.ndim - 1)))
        self._constant(f"{name}_q", whole.clip(-self.top, self.top).astype(np.int8))
        self._constant(f"{name}_scale", scales.astype(np.float32))
        self._constant(f"{name}_zero_point", np.zeros(len(values), np.int8))
        entries = [f"{name}_q", f"{name}_scale", f"{name}_zero_point"]
        label = name_of(convolution or name, "weight_DequantizeLinear")
        self.nodes.append(helper.make_node("DequantizeLinear", entries, [f"{name}_dq"], name=label, axis=0))
        self.weights[name] = f"{name}_dq"
        return self.weights[name]

    def _constant(self, name: str, value: npt.NDArray[Any]) -> None:
        self.constants[name] = numpy_helper.from_array(value, name)


def _positive(width: float) -> float:
    """The width, at least 2**-14: a tensor that is zero on all images still needs a scale that FP16 can hold."""
    return max(float(width), 2.0**-14)


def _finite(name: str, value: float) -> float:
    if np.isfinite(value):
        return float(value)
    raise InputError(f"tensor {name}: no finite range; calibrate the same model, and check its FP32 outputs")


def _up_to_fp16(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The least FP16 values that are not below the given ones, at least 2**-20 (subnormal, exact to a sixteenth)."""
    halves = values.astype(np.float16)
    low = halves.astype(np.float64) < values
    halves[low] = np.nextafter(halves[low], np.float16(np.inf))
    return np.maximum(halves.astype(np.float64), 2.0**-20)


def _fp16_grid(grid: Grid) -> Grid:
    return Grid(float(_up_to_fp16(np.array([grid.scale]))[0]), grid.zero_point, grid.dtype)


def _raise_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same graph in a later opset, by ONNX's own converter; metadata and IR version are carried over."""
    raised = onnx.version_converter.convert_version(model, opset)
    del raised.metadata_props[:]
    raised.metadata_props.extend(model.metadata_props)
    raised.ir_version = max(model.ir_version, 9)
    raised.producer_name = model.producer_name
    del raised.graph.value_info[:]
    for constant in [n for n in raised.graph.node if n.op_type == "Constant"]:  # attributes of the earlier opset
        raised.graph.node.remove(constant)
        tensor = raised.graph.initializer.add()
        tensor.CopyFrom(constant.attribute[0].t)
        tensor.name = constant.output[0]
    name_constants(raised)
    return raised
