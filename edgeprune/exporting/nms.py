"""Non-maximum suppression inside the ONNX file (`--nms`): raw outputs become (1, 300, 6) rows, best first; as many rows
as there are anchors where a small input has fewer.

It is for runtimes without NMS of their own (DeepStream without a parser, a C++ loop). NMS outside the file is the
default: there it can be changed without a new engine.

Neither ONNX's NonMaxSuppression nor a plugin serves here. The number of boxes of the former is known only afterwards,
so its shapes are not fixed, and TensorRT for RTX has no kernel for it (1.7: "no runners that implement it");
EfficientNMS_TRT exists in TensorRT only. Greedy NMS is here the fixed point of "a box stays unless one that stays, and
is better, covers it", iterated on the matrix of overlaps (Cluster-NMS: Zheng et al., "Enhancing Geometric Factors in
Model Learning and Inference for Object Detection and Instance Segmentation", arXiv 2005.03572). It has fixed shapes,
consists of matrix products and runs in every runtime. It is exact as long as no chain of boxes that cover one another
is longer than ITERATIONS.

Each box has one class, the best one, as in Ultralytics' `predict` and in `vision.postprocess.detections`; boxes of
different classes do not suppress each other. The evaluator takes every class of a box that a raw output gives, so a
file with NMS inside measures lower, and the more so the less sure the detector is of its classes: mAP50-95 0.230
instead of 0.261 for the demo (100 scenes), 0.462 instead of 0.466 for YOLOv8n COCO (64 images of coco128).
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

import numpy as np
import onnx
from edgeprune_device.errors import InputError
from edgeprune_device.output import END2END, MAX_ROWS, shape_of
from onnx import TensorProto, helper, numpy_helper

from edgeprune.model.head import output_of_file

__all__ = ["CONF", "IOU", "add", "without"]

#: The least score of a row: that of the evaluator. An application filters by a higher one (`nms.conf`).
CONF = 0.001
IOU = 0.7
#: The number of boxes that enter, the best by score; TensorRT's TopK ends at 3,840.
CANDIDATES = 1024
#: YOLOv8n at conf 0.001 needs 8 at most on 128 COCO images (up to 2,136 boxes each), 6 on 80 of HIT-UAV (682).
ITERATIONS = 16
_RAW = "raw"
_PREFIX = "/nms/"


def add(model: onnx.ModelProto) -> onnx.ModelProto:
    """Add NMS after the output `output0`: (1, 4 + classes, anchors) -> (1, min(300, anchors), 6).

    A row is [x1, y1, x2, y2, score, class], in network px; after the last detection the rows are zeros. The added nodes
    are FP32 in every precision.

    Args:
        model: The file; it is not changed.

    Raises:
        InputError: The head is a one-to-one head, which needs no NMS.
    """
    (output,) = model.graph.output
    shape = [d.dim_value for d in output.type.tensor_type.shape.dim]
    if output_of_file(model) == END2END:
        raise InputError("--nms: this model's head gives one box per object already; leave --nms out")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _rename_output(result.graph, output.name, _RAW)
    _append(result, output.name, shape[1] - 4, shape[2])
    del result.graph.output[:]
    rows = shape_of(END2END, shape[1] - 4, shape[2])
    result.graph.output.append(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, rows))
    result.graph.value_info.append(helper.make_tensor_value_info(_RAW, TensorProto.FLOAT, shape))
    _note(result, nms=True)
    return onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)


def without(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as it was before `add`; the model itself where it has no added NMS."""
    if not any(node.name.startswith(_PREFIX) for node in model.graph.node):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    raw = next(v for v in graph.value_info if v.name == _RAW)
    (output,) = graph.output
    output.type.CopyFrom(raw.type)
    graph.value_info.remove(raw)
    for entries in (graph.node, graph.initializer, graph.value_info):
        for i in reversed(range(len(entries))):
            if entries[i].name.startswith(_PREFIX):
                del entries[i]
    _rename_output(graph, _RAW, output.name)
    _note(result, nms=False)
    return result


def _rename_output(graph: onnx.GraphProto, before: str, after: str) -> None:
    """Rename the output of the node that makes it; none of the network's own nodes reads it."""
    for node in graph.node:
        for i, name in enumerate(node.output):
            if name == before:
                node.output[i] = after


def _note(model: onnx.ModelProto, *, nms: bool) -> None:
    """Note it in the arguments that stock Ultralytics reads."""
    for entry in model.metadata_props:
        if entry.key == "args":
            entry.value = str({**ast.literal_eval(entry.value), "nms": nms})


def _append(model: onnx.ModelProto, output: str, classes: int, anchors: int) -> None:
    graph = model.graph

    def constant(name: str, value) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), _PREFIX + name))
        return _PREFIX + name

    def node(op: str, inputs: Sequence[str], *outputs: str, **attributes) -> str:
        names = [_PREFIX + name for name in outputs]
        graph.node.append(helper.make_node(op, inputs, names, name=f"{_PREFIX}{outputs[0]}", **attributes))
        return names[0]

    def parts(value: str, *names: str, axis: int, widths: Sequence[int]) -> list[str]:
        node("Split", [value, constant(f"{names[0]}_widths", np.array(widths))], *names, axis=axis)
        return [_PREFIX + name for name in names]

    rows = node("Transpose", [_RAW], "anchors", perm=[0, 2, 1])
    rows = node("Reshape", [rows, constant("flat", np.array([anchors, 4 + classes]))], "rows")
    centre, size, scores = parts(rows, "centre", "size", "scores", axis=1, widths=[2, 2, classes])
    half = node("Mul", [size, constant("half", np.float32(0.5))], "reach")
    corners = [node("Sub", [centre, half], "low"), node("Add", [centre, half], "high")]
    best = node("TopK", [scores, constant("one", np.array([1]))], "best", "index", axis=1)
    label = node("Cast", [_PREFIX + "index"], "label", to=TensorProto.FLOAT)
    table = node("Concat", [*corners, best, label], "table", axis=1)

    # The best boxes by score, best first.
    count = min(CANDIDATES, anchors)
    node("TopK", [best, constant("count", np.array([count]))], "top", "places", axis=0)
    places = node("Reshape", [_PREFIX + "places", constant("line", np.array([count]))], "order")
    table = node("Gather", [table, places], "candidates", axis=0)
    x1, y1, x2, y2, score, label = parts(table, "x1", "y1", "x2", "y2", "score", "class", axis=1, widths=[1] * 6)

    # (count, count): whether one box covers another; only a better one of the same class does.
    def across(name: str) -> str:
        return node("Transpose", [_PREFIX + name], f"{name}_across", perm=[1, 0])

    def overlap(low: str, high: str, name: str) -> str:
        start = node("Max", [low, across(low[len(_PREFIX) :])], f"{name}_start")
        end = node("Min", [high, across(high[len(_PREFIX) :])], f"{name}_end")
        return node("Relu", [node("Sub", [end, start], f"{name}_span")], f"{name}_overlap")

    both = node("Mul", [overlap(x1, x2, "x"), overlap(y1, y2, "y")], "both")
    area = node("Mul", [node("Sub", [x2, x1], "width"), node("Sub", [y2, y1], "height")], "area")
    union = node("Sub", [node("Add", [area, across("area")], "areas"), both], "union")
    # both / union > IOU, without a division that could be by zero.
    covers = node("Greater", [both, node("Mul", [union, constant("iou", np.float32(IOU))], "least")], "overlapping")
    same = node("Equal", [label, across("class")], "same")
    rank = np.arange(count, dtype=np.float32)
    better = node("Less", [constant("rank", rank[:, None]), constant("rank_across", rank[None])], "better")
    covers = node("And", [node("And", [covers, same], "rivals"), better], "covering")
    covers = node("Cast", [covers], "covers", to=TensorProto.FLOAT)

    enough = node("Greater", [score, constant("conf", np.float32(CONF))], "enough")
    valid = node("Cast", [enough], "valid", to=TensorProto.FLOAT)
    valid = across("valid")
    stays = valid
    for i in range(ITERATIONS):
        covered = node("MatMul", [stays, covers], f"covered{i}")
        free = node("Less", [covered, constant(f"none{i}", np.float32(0.5))], f"free{i}")
        stays = node("Mul", [node("Cast", [free], f"open{i}", to=TensorProto.FLOAT), valid], f"stays{i}")

    # The best of those that stay; the others become zeros.
    most = min(MAX_ROWS, count)
    column = node("Transpose", [stays], "stays", perm=[1, 0])
    rows = node("Mul", [table, column], "kept")
    node("TopK", [node("Mul", [score, column], "ranking"), constant("most", np.array([most]))],
         "first", "ranks", axis=0)  # fmt: skip
    ranks = node("Reshape", [_PREFIX + "ranks", constant("few", np.array([most]))], "winners")
    found = node("Gather", [rows, ranks], "found", axis=0)
    shape = constant("shape", np.array([1, most, 6]))
    graph.node.append(helper.make_node("Reshape", [found, shape], [output], name=f"{_PREFIX}out"))
