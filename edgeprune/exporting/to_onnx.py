"""Exports a network as one ONNX file: FP32, one static batch-1 shape, simplified and checked.

The module does not depend on precisions, targets or bundles.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxsim
import torch
from edgeprune_device.errors import GateError
from edgeprune_device.output import END2END

from edgeprune.model.head import last_layer, output_of_network, strides
from edgeprune.model.prepare import prepare, quiet
from edgeprune.quantize.graph import name_constants

__all__ = ["IR_VERSION", "OPSET", "metadata_of", "to_onnx", "trace"]

# TensorRT 8.5 and 8.6 (JetPack 5, 6.0) read no opset above 17.
OPSET = 17
# ONNX Runtime 1.15, the oldest that the device package accepts, reads at most IR 9; opset 17 needs IR 8.
IR_VERSION = 8


def to_onnx(
    model: torch.nn.Module,
    imgsz: tuple[int, int],
    *,
    opset: int = OPSET,
    metadata: Mapping[str, Any] | None = None,
    end2end: bool | None = None,
) -> onnx.ModelProto:
    """Export an Ultralytics detector as one simplified, checked FP32 graph of static shape.

    The input `images` is (1, 3, h, w) float32, RGB in 0..1. The output `output0` is (1, 4 + classes, anchors) with
    boxes as cx, cy, w, h in px and scores after the sigmoid. For a one-to-one head it is (1, n, 6) [x1, y1, x2, y2,
    score, class], px; n is 300, or the number of anchors if that is smaller.

    Args:
        model: An Ultralytics DetectionModel, pruned or not, fused or not; it is not changed.
        imgsz: (H, W), px, multiples of the model's largest stride.
        opset: The ONNX opset.
        metadata: Entries that replace or extend those of `metadata_of`.
        end2end: Whether to use the one-to-one head, whose output needs no NMS; None leaves the choice of the model.

    Raises:
        InputError: The model does not support the size.
        GateError: The simplified graph is invalid, or its outputs differ.
    """
    height, width = imgsz
    ready = prepare(model, imgsz, end2end=end2end)
    graph = trace(ready, height, width, opset)
    with quiet():
        graph, equal = onnxsim.simplify(graph, check_n=1)
    if not equal:
        raise GateError("exported graph: onnxsim changed the outputs, so the file was not written")
    graph = _tidy(graph)
    for key, value in {**metadata_of(ready, imgsz), **(metadata or {})}.items():
        graph.metadata_props.add(key=key, value=str(value))
    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GateError(f"exported graph: not valid ONNX: {' '.join(str(error).split())}") from error
    return graph


def metadata_of(model: torch.nn.Module, imgsz: tuple[int, int]) -> dict[str, Any]:
    """The metadata that stock Ultralytics writes into a file, and reads back when `YOLO("model.onnx")` opens it.

    Args:
        model: The exported network.
        imgsz: (H, W), px.
    """
    import ultralytics

    names = getattr(model, "names", None) or {i: f"class{i}" for i in range(last_layer(model).nc)}
    names = dict(enumerate(names)) if isinstance(names, (list, tuple)) else dict(names)
    architecture = Path(str((getattr(model, "yaml", None) or {}).get("yaml_file", "model"))).stem
    return {
        "description": f"Ultralytics {architecture} exported by edgeprune",
        "author": "edgeprune",
        "version": ultralytics.__version__,
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
        "stride": max(strides(model)),
        "task": getattr(model, "task", "detect"),
        "head": type(last_layer(model)).__name__,
        "batch": 1,
        "imgsz": [int(v) for v in imgsz],
        "names": names,
        "args": {"batch": 1, "dynamic": False, "simplify": True, "nms": False},
        "channels": _channels(model),
        "end2end": output_of_network(model) == END2END,
    }


def _channels(model: torch.nn.Module) -> int:
    return int((getattr(model, "yaml", None) or {}).get("channels", 3))


def trace(model: torch.nn.Module, height: int, width: int, opset: int) -> onnx.ModelProto:
    """Trace one run of the network.

    The TorchScript exporter is used, because only it keeps opset 17 (the dynamo exporter writes 18 and converts
    down) and names nodes after the model's layers. PyTorch 2.15 still has it behind `dynamo=False`.

    Args:
        model: The network, as `model.prepare` returns it.
        height: The height of the input, px.
        width: The width of the input, px.
        opset: The ONNX opset.
    """
    picture = torch.zeros(1, _channels(model), height, width)
    target = io.BytesIO()
    with quiet(), torch.no_grad():
        model(picture)  # fills the anchor cache, so that the anchors become constants
        torch.onnx.export(
            model,
            (picture,),
            target,  # type: ignore[arg-type]  # dynamo=False writes to a stream, too
            opset_version=opset,
            input_names=["images"],
            output_names=["output0"],
            do_constant_folding=True,
            dynamo=False,
        )
    return onnx.load_from_string(target.getvalue())


def _tidy(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Turn constants into initializers, so that all weights are in one place, set the IR version and the producer, and
    drop onnxsim's metadata.
    """
    kept = []
    for node in graph.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = graph.graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            kept.append(copy.deepcopy(node))
    del graph.graph.node[:]
    graph.graph.node.extend(kept)
    name_constants(graph)
    del graph.metadata_props[:]
    graph.graph.name = "edgeprune"
    graph.ir_version = max(IR_VERSION, 9 if graph.opset_import[0].version >= 19 else IR_VERSION)
    graph.producer_name = "edgeprune"
    graph.producer_version = ""
    return graph
