"""ONNX Runtime as a reference: computes every operator of a reduced-precision file as written.

By default, ONNX Runtime deviates from the file on a CPU in two ways. FP16 operators run in FP32 and their results are
mostly not rounded (see `rounded`). Q/DQ pairs are fused into integer kernels (see `reference_session`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from edgeprune_device.runtimes import ort
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgeprune.quantize.graph import MOVES, Graph, copy_of

__all__ = ["reference_session", "rounded"]


def reference_session(model: onnx.ModelProto | bytes | str | Path, *, threads: int = 1) -> onnxruntime.InferenceSession:
    """Open a session that does not fuse Q and DQ with their neighbours; for accuracy, not for speed.

    Use it to predict TensorRT's results. By default, ONNX Runtime (1.32) fuses DQ, operator and Q into integer kernels.
    On x86 without VNNI these saturate with 8-bit weights. If the scales are FP16 (`model.int8-fp16.onnx`), ONNX Runtime
    ignores their type and then refuses its own graph: "Type 'tensor(float16)' of
    input parameter … of operator (QLinearConcat) is invalid".

    Args:
        model: The file, its bytes or its path.
        threads: The number of inference threads.
    """
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, ort.options(threads, as_written=True), providers=[ort.CPU])


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a typed FP16 file to an FP32 graph that rounds each FP16 value to FP16, for accuracy on a CPU.

    ONNX Runtime has no FP16 kernels on x86: it computes in FP32 and drops the casts between two such operators. An FP16
    file therefore measures there like an FP32 one, and its overflows go unnoticed. In the returned graph each operator
    accumulates in FP32 and stores FP16, as on a GPU; Conv and SiLU are one operator, as in TensorRT's fusion.
    """
    graph = Graph(model)
    inner = {name for node in graph.nodes for name in node.output if graph.is_silu(name)}
    inner |= {node.output[0] for node in graph.nodes if node.op_type == "Sigmoid" and node.input[0] in inner}
    result = copy_of(model)
    del result.graph.node[:], result.graph.initializer[:]
    for tensor in graph.initializers.values():
        values = numpy_helper.to_array(tensor)
        wide = values.astype(np.float32) if values.dtype == np.float16 else values
        result.graph.initializer.append(numpy_helper.from_array(wide, tensor.name))
    for node in graph.nodes:
        result.graph.node.extend(_rounded_node(graph, node, inner))
    return result


def _rounded_node(graph: Graph, node: NodeProto, inner: set[str]) -> list[NodeProto]:
    """The node in FP32, followed by a Cast to FP16 and back for each result that is stored in FP16."""
    changed = NodeProto()
    changed.CopyFrom(node)
    if node.op_type == "Cast" and TensorProto.FLOAT16 in (graph.types[node.input[0]], graph.types[node.output[0]]):
        changed = helper.make_node("Identity", list(node.input), list(node.output), name=node.name)
    made = [changed]
    for i, name in enumerate(node.output):
        if graph.types.get(name) == TensorProto.FLOAT16 and node.op_type not in MOVES and name not in inner:
            changed.output[i] = f"{name}_exact"
            made.append(helper.make_node("Cast", [f"{name}_exact"], [f"{name}_half"], to=TensorProto.FLOAT16))
            made.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    return made
