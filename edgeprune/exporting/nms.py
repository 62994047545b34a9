"""Non-maximum suppression inside the ONNX file (`--nms`): raw outputs become (1, 300, 6) rows, best first. A small
input with fewer than 300 anchors gives one row per anchor.

It is for runtimes without their own NMS (DeepStream without a parser, a C++ loop). By default NMS is outside the file,
where it can be changed without a new engine.

Neither ONNX's NonMaxSuppression nor a plugin is suitable. The output shape of the former is not fixed, and TensorRT for
RTX has no kernel for it (1.7: "no runners that implement it"); EfficientNMS_TRT exists only in TensorRT. Greedy NMS is
therefore computed as the fixed point of "a box is kept unless a better box that is kept covers it", by iteration on the
matrix of overlaps (Cluster-NMS: Zheng et al., "Enhancing Geometric Factors in Model Learning and Inference for Object
Detection and Instance Segmentation", arXiv 2005.03572). It has fixed shapes, consists of matrix products and runs in
every runtime. It is exact unless a chain of boxes, each of which covers the next, is longer than ITERATIONS.

Each box has one class, the best one, as in Ultralytics' `predict` and in `vision.detect`; boxes of
different classes do not suppress each other. In a raw output the evaluator counts every class of a box. A file with NMS
therefore measures lower, especially if the detector is uncertain of its classes: mAP50-95 0.230 instead of 0.261 for
the demo (100 scenes), 0.462 instead of 0.466 for YOLOv8n COCO (64 images of coco128).
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from edgeprune_device.errors import InputError
from edgeprune_device.option import named
from edgeprune_device.output import END2END, MAX_ROWS, shape_of
from edgeprune_device.vision.postprocess import IOU
from onnx import TensorProto, helper, numpy_helper

from edgeprune import tasks
from edgeprune.model.head import output_of_file, task_of_file
from edgeprune.tasks.task import Task

__all__ = ["CONF", "add", "check", "without"]

#: The least score of a row, as in the evaluator. Applications filter by a higher score (`nms.conf`).
CONF = 0.001
#: The number of candidates, the best boxes by score; TensorRT's TopK accepts at most 3,840.
CANDIDATES = 1024
#: YOLOv8n at conf 0.001 needs at most 8 on 128 COCO images (up to 2,136 boxes each), and 6 on 80 of HIT-UAV (682).
ITERATIONS = 16
_RAW = "raw"
_PREFIX = "/nms/"


def check(task: Task) -> None:
    """Check that the NMS of a task can be in the file.

    Raises:
        InputError: It cannot.
    """
    if not task.nms_in_file:
        raise InputError(
            f"{named('nms')}: not available for {task.objects}; leave the option out, and NMS runs after the network"
        )


def add(model: onnx.ModelProto) -> onnx.ModelProto:
    """Add NMS after the output `output0`: (1, 4 + classes, anchors) -> (1, min(300, anchors), 6).

    A row is [x1, y1, x2, y2, score, class], in network px; after the last detection the rows are zeros. The added nodes
    are FP32 in every precision.

    Args:
        model: The file; it is not changed.

    Raises:
        InputError: The head is a one-to-one head, which needs no NMS, or the task's NMS cannot be in the file.
    """
    check(tasks.get(task_of_file(model)))
    (output,) = model.graph.output
    shape = [d.dim_value for d in output.type.tensor_type.shape.dim]
    if output_of_file(model) == END2END:
        raise InputError(
            f"{named('nms')}: not needed, because this model's head already gives one box per object; leave the "
            "option out"
        )
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _rename_output(result.graph, output.name, _RAW)
    _Suppression(result.graph, shape[1] - 4, shape[2]).write(output.name)
    del result.graph.output[:]
    rows = shape_of(END2END, shape[1] - 4, shape[2])
    result.graph.output.append(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, rows))
    result.graph.value_info.append(helper.make_tensor_value_info(_RAW, TensorProto.FLOAT, shape))
    _note(result, nms=True)
    return onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)


def without(model: onnx.ModelProto) -> onnx.ModelProto:
    """Undo `add`; a model without added NMS is returned unchanged."""
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
    """Rename an output at the node that computes it; no other node of the network reads it."""
    for node in graph.node:
        for i, name in enumerate(node.output):
            if name == before:
                node.output[i] = after


def _note(model: onnx.ModelProto, *, nms: bool) -> None:
    """Record `nms` in the arguments that stock Ultralytics reads."""
    for entry in model.metadata_props:
        if entry.key == "args":
            entry.value = str({**ast.literal_eval(entry.value), "nms": nms})


class _Suppression:
    """Writes the nodes of NMS into a graph whose raw output is _RAW.

    Args:
        graph: The graph to which the nodes are added.
        classes: The number of classes.
        anchors: The number of anchors.
    """

    def __init__(self, graph: onnx.GraphProto, classes: int, anchors: int) -> None:
        self._graph, self._classes, self._anchors = graph, classes, anchors
        self._count = min(CANDIDATES, anchors)  # the number of candidates

    def write(self, output: str) -> None:
        """Add all nodes; the last one computes `output`."""
        table, (*corners, score, label) = self._candidates()
        stays = self._survivors(self._covers(corners, label), score)
        rows = self._best(table, score, stays)
        shape = self._constant("shape", np.array([1, min(MAX_ROWS, self._count), 6]))
        self._graph.node.append(helper.make_node("Reshape", [rows, shape], [output], name=f"{_PREFIX}out"))

    def _candidates(self) -> tuple[str, list[str]]:
        """The best boxes by score, best first.

        Returns:
            (the table, (count, 6) [x1, y1, x2, y2, score, class]; each of its columns, (count, 1)).
        """
        flat = self._constant("flat", np.array([self._anchors, 4 + self._classes]))
        rows = self._node("Reshape", [self._node("Transpose", [_RAW], "anchors", perm=[0, 2, 1]), flat], "rows")
        centre, size, scores = self._split(rows, ["centre", "size", "scores"], [2, 2, self._classes])
        half = self._node("Mul", [size, self._constant("half", np.float32(0.5))], "reach")
        corners = [self._node("Sub", [centre, half], "low"), self._node("Add", [centre, half], "high")]
        best = self._node("TopK", [scores, self._constant("one", np.array([1]))], "best", "index", axis=1)
        label = self._node("Cast", [_PREFIX + "index"], "label", to=TensorProto.FLOAT)
        table = self._node("Concat", [*corners, best, label], "table", axis=1)

        self._node("TopK", [best, self._constant("count", np.array([self._count]))], "top", "places", axis=0)
        line = self._constant("line", np.array([self._count]))
        places = self._node("Reshape", [_PREFIX + "places", line], "order")
        table = self._node("Gather", [table, places], "candidates", axis=0)
        return table, self._split(table, ["x1", "y1", "x2", "y2", "score", "class"], [1] * 6)

    def _covers(self, corners: Sequence[str], label: str) -> str:
        """(count, count): whether a box covers another, which only a better box of the same class does."""
        x1, y1, x2, y2 = corners
        both = self._node("Mul", [self._overlap(x1, x2, "x"), self._overlap(y1, y2, "y")], "both")
        sides = [self._node("Sub", [x2, x1], "width"), self._node("Sub", [y2, y1], "height")]
        area = self._node("Mul", sides, "area")
        union = self._node("Sub", [self._node("Add", [area, self._across(area)], "areas"), both], "union")
        # both / union > IOU, written without a division, because the union may be zero.
        least = self._node("Mul", [union, self._constant("iou", np.float32(IOU))], "least")
        overlapping = self._node("Greater", [both, least], "overlapping")
        same = self._node("Equal", [label, self._across(label)], "same")
        rank = np.arange(self._count, dtype=np.float32)
        ranks = [self._constant("rank", rank[:, None]), self._constant("rank_across", rank[None])]
        better = self._node("Less", ranks, "better")
        covers = self._node("And", [self._node("And", [overlapping, same], "rivals"), better], "covering")
        return self._node("Cast", [covers], "covers", to=TensorProto.FLOAT)

    def _survivors(self, covers: str, score: str) -> str:
        """(1, count): 1 for a kept box, 0 for the others."""
        enough = self._node("Greater", [score, self._constant("conf", np.float32(CONF))], "enough")
        valid = self._across(self._node("Cast", [enough], "valid", to=TensorProto.FLOAT))
        stays = valid
        for i in range(ITERATIONS):
            covered = self._node("MatMul", [stays, covers], f"covered{i}")
            free = self._node("Less", [covered, self._constant(f"none{i}", np.float32(0.5))], f"free{i}")
            opened = self._node("Cast", [free], f"open{i}", to=TensorProto.FLOAT)
            stays = self._node("Mul", [opened, valid], f"stays{i}")
        return stays

    def _best(self, table: str, score: str, stays: str) -> str:
        """The best kept rows; the others become zeros."""
        most = np.array([min(MAX_ROWS, self._count)])
        column = self._node("Transpose", [stays], "stays", perm=[1, 0])
        rows = self._node("Mul", [table, column], "kept")
        ranking = self._node("Mul", [score, column], "ranking")
        self._node("TopK", [ranking, self._constant("most", most)], "first", "ranks", axis=0)
        ranks = self._node("Reshape", [_PREFIX + "ranks", self._constant("few", most)], "winners")
        return self._node("Gather", [rows, ranks], "found", axis=0)

    def _overlap(self, low: str, high: str, name: str) -> str:
        """(count, count): the length of the overlap of two boxes along one axis."""
        start = self._node("Max", [low, self._across(low)], f"{name}_start")
        end = self._node("Min", [high, self._across(high)], f"{name}_end")
        return self._node("Relu", [self._node("Sub", [end, start], f"{name}_span")], f"{name}_overlap")

    def _across(self, column: str) -> str:
        """A column, (count, 1), as a row, (1, count)."""
        return self._node("Transpose", [column], f"{column[len(_PREFIX) :]}_across", perm=[1, 0])

    def _split(self, value: str, names: Sequence[str], widths: Sequence[int]) -> list[str]:
        """Split a table into columns with these names and widths."""
        self._node("Split", [value, self._constant(f"{names[0]}_widths", np.array(widths))], *names, axis=1)
        return [_PREFIX + name for name in names]

    def _constant(self, name: str, value: npt.NDArray[np.generic] | np.float32) -> str:
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), _PREFIX + name))
        return _PREFIX + name

    def _node(self, op: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        """Add a node; return its first output."""
        names = [_PREFIX + name for name in outputs]
        self._graph.node.append(helper.make_node(op, inputs, names, name=f"{_PREFIX}{outputs[0]}", **attributes))
        return names[0]
