"""The device variant of an ONNX file: it takes the pixels of an image, and returns the best anchors beside all of them.

The input is (1, h, w, 3) uint8, as an image is in memory after the resizing: a quarter of the bytes of floats, and no
arithmetic on the CPU. The file casts to float, moves the channels and divides by 255. TensorRT for RTX 1.7 refuses the
move before the cast. The result equals `vision.preprocess` to the last bit.

A raw output becomes the three outputs of BEST (`edgeprune_device.output`). TensorRT leaves the raw output in the GPU's
memory, and copies it only if more anchors than the best ones exceed the threshold. The detections are therefore those
of the stock file, at any threshold. An end-to-end output is small, and stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from edgeprune_device.layouts import UINT8_NHWC, shape_of
from edgeprune_device.output import BEST, MAX_ROWS, NAMES, RAW
from edgeprune_device.target import Target
from onnx import TensorProto, helper, numpy_helper

from edgeprune import tasks
from edgeprune.model.head import output_of_file, task_of_file

__all__ = ["flies", "fp32_nodes", "of"]

_PREFIX = "/device/"
_IMAGE, _BEST = "images", f"{_PREFIX}best"
_SCORES, _HIGHEST, _TOP = (f"{_PREFIX}{name}" for name in ("scores", "highest", "top"))


def flies(asked: str, target: Target) -> bool:
    """Whether a build packs, times and judges the device variants of its files instead of the files.

    On a CPU the variant only moves work into the file, and a frame takes as long as before (`benchmarks/variant.py`).
    With OpenVINO, the last bits also differ. Therefore `auto` selects variants for GPU targets only.

    Args:
        asked: The value of the option `input`.
        target: The target of the build.
    """
    return asked == "uint8" or (asked == "auto" and target.int8_activations == "signed")


def of(model: onnx.ModelProto) -> onnx.ModelProto:
    """The device variant of a file from `to_onnx`, of any precision, with or without NMS.

    Args:
        model: The file; it is not changed.
    """
    kind, result = output_of_file(model), onnx.ModelProto()
    result.CopyFrom(model)
    _take_pixels(result)
    raw = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    if kind == RAW and raw[2] > MAX_ROWS:
        _return_best(result, raw, raw[1] - 4 - tasks.get(task_of_file(model)).on_device.extra)
    result = onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)
    onnx.checker.check_model(result, full_check=True)
    return result


def fp32_nodes(model: onnx.ModelProto) -> list[str]:
    """The nodes of a device variant that must stay FP32 if FP16 is a flag for the whole network.

    They pass on coordinates, of which FP16 resolves only half a pixel above 512.

    Args:
        model: The variant.
    """
    return [node.name for node in model.graph.node if node.name in (_SCORES, _HIGHEST, _TOP, _BEST)]


def _take_pixels(model: onnx.ModelProto) -> None:
    """Replace the input by uint8 NHWC."""
    graph = model.graph
    _, _, height, width = (d.dim_value for d in graph.input[0].type.tensor_type.shape.dim)
    _rename(graph, graph.input[0].name, f"{_PREFIX}image")
    levels = _constant(graph, "levels", np.float32(255))
    pixels = [
        _node("Cast", [_IMAGE], f"{_PREFIX}float", to=TensorProto.FLOAT),
        _node("Transpose", [f"{_PREFIX}float"], f"{_PREFIX}planes", perm=[0, 3, 1, 2]),
        _node("Div", [f"{_PREFIX}planes", levels], f"{_PREFIX}image"),
    ]
    nodes = [*pixels, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    shape = shape_of(UINT8_NHWC, (height, width))
    graph.input.append(helper.make_tensor_value_info(_IMAGE, TensorProto.UINT8, shape))
    model.metadata_props.add(key="edgeprune_layout", value=UINT8_NHWC)


def _return_best(model: onnx.ModelProto, shape: Sequence[int], classes: int) -> None:
    """Replace a raw output of this shape by the outputs of BEST."""
    graph = model.graph
    best, anchors, raw = NAMES
    _rename(graph, graph.output[0].name, raw)
    begin, end, axis = (
        _constant(graph, name, np.array([value])) for name, value in (("begin", 4), ("end", 4 + classes), ("axis", 1))
    )
    # From opset 18 on, the axes of ReduceMax are an input.
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    axes, attributes = ([axis], {}) if opset >= 18 else ([], {"axes": [1]})
    count, line = (_constant(graph, name, np.array([MAX_ROWS])) for name in ("count", "line"))
    places, order = f"{_PREFIX}places", f"{_PREFIX}order"
    graph.node.extend([
        _node("Slice", [raw, begin, end, axis], _SCORES),
        _node("ReduceMax", [_SCORES, *axes], _HIGHEST, keepdims=0, **attributes),
        helper.make_node("TopK", [_HIGHEST, count], [_TOP, places], name=_TOP, axis=1, largest=1, sorted=1),
        _node("Reshape", [places, line], order),
        helper.make_node("Gather", [raw, order], [best], name=_BEST, axis=2),
        helper.make_node("Cast", [places], [anchors], name=f"{_PREFIX}anchors", to=TensorProto.INT32),
    ])  # fmt: skip
    del graph.output[:]
    graph.output.extend([
        helper.make_tensor_value_info(best, TensorProto.FLOAT, [1, shape[1], MAX_ROWS]),
        helper.make_tensor_value_info(anchors, TensorProto.INT32, [1, MAX_ROWS]),
        helper.make_tensor_value_info(raw, TensorProto.FLOAT, shape),
    ])  # fmt: skip
    model.metadata_props.add(key="edgeprune_output", value=BEST)


def _rename(graph: onnx.GraphProto, before: str, after: str) -> None:
    """Rename a tensor wherever a node reads or writes it."""
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == before:
                    names[i] = after


def _node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """A node with the name of its output."""
    return helper.make_node(op, inputs, [output], name=output, **attributes)


def _constant(graph: onnx.GraphProto, name: str, value: object) -> str:
    """Add a constant; return its name."""
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{_PREFIX}{name}"))
    return f"{_PREFIX}{name}"
