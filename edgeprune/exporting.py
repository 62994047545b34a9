"""A model becomes one ONNX file, and the file is proven equal to the model.

`to_onnx` writes what every later stage starts from: FP32, one static batch-1 shape, simplified and checked.
`parity` runs PyTorch and ONNX Runtime on the same pictures and states how far they are apart.
This module knows nothing of precisions, targets or bundles.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxsim
import torch
from edgeprune_device.errors import GateError, InputError
from edgeprune_device.output import END2END, MAX_ROWS

from edgeprune import head as heads
from edgeprune.quantize.graph import name_constants

__all__ = ["Parity", "compare_outputs", "metadata_of", "parity", "prepare", "to_onnx"]

# TensorRT 8.5 and 8.6 (JetPack 5, 6.0) read no opset above 17.
OPSET = 17
# ONNX Runtime 1.15, the oldest the device package accepts, reads IR 9 at most; opset 17 needs IR 8.
IR_VERSION = 8
# Anchors below this score never become a detection: the confidence of the one evaluator.
MIN_SCORE = 1e-3
# Measured on YOLOv8n at 640 px, ONNX Runtime 1.32 against PyTorch 2.15 in FP32: 2e-4 px and 4e-6; FP16 differs by
# 0.5 px and 4e-3.
MAX_BOX_PX = 0.05
MAX_SCORE = 1e-3


@dataclass(frozen=True)
class Parity:
    """How far ONNX Runtime is from PyTorch on the same pictures.

    Example: `Parity(max_box_px=0.0002, max_score=4.4e-06, pictures=8, compared=5120, unmatched=0)`: over 5,120 boxes of
    8 pictures no coordinate differs by a thousandth of a pixel, and no class score by more than 4.4e-6.
    """

    max_box_px: float
    max_score: float
    pictures: int
    compared: int
    unmatched: int = 0

    def to_json(self) -> dict[str, Any]:
        """The figures as plain numbers; a difference that is not a number is null."""
        return {k: v if np.isfinite(v) else None for k, v in asdict(self).items()}

    def check(self, max_box_px: float = MAX_BOX_PX, max_score: float = MAX_SCORE) -> None:
        """Raise GateError with the figures unless both differences are within limits and something was compared."""
        # Written so that NaN fails.
        good = self.max_box_px <= max_box_px and self.max_score <= max_score and not self.unmatched
        if good and self.pictures and self.compared:
            return
        raise GateError(
            f"the exported ONNX does not equal the PyTorch model: boxes differ by up to {self.max_box_px:.4g} px "
            f"(limit {max_box_px:g}), scores by up to {self.max_score:.3g} (limit {max_score:g}), "
            f"{self.unmatched} detections without a partner, over {self.compared} boxes of {self.pictures} pictures"
        )


def to_onnx(
    model: torch.nn.Module,
    imgsz: tuple[int, int],
    *,
    opset: int = OPSET,
    metadata: Mapping[str, Any] | None = None,
    end2end: bool | None = None,
) -> onnx.ModelProto:
    """Export an Ultralytics detector as one simplified, checked FP32 graph of static shape.

    model: an Ultralytics DetectionModel, pruned or not, fused or not; it is not changed.
    imgsz: height and width in pixels, multiples of the model's largest stride.
    metadata: entries that replace or extend what `metadata_of` writes.
    end2end: take the one-to-one head, whose output needs no NMS. None takes it where the model has one.

    Input `images` (1, 3, h, w) float32, RGB in 0..1. Output `output0`: (1, 4 + classes, anchors) with boxes as
    cx, cy, w, h in pixels and scores after the sigmoid; of a one-to-one head (1, n, 6) with x1, y1, x2, y2, score,
    class, where n is 300, or the number of anchors where there are fewer. Raises InputError for a size that the model
    cannot take, GateError where the simplified graph is not valid.
    """
    height, width = imgsz
    ready = prepare(model, imgsz, end2end=end2end)
    graph = trace(ready, height, width, opset)
    with _quiet():
        graph, equal = onnxsim.simplify(graph, check_n=1)
    if not equal:
        raise GateError("onnxsim changed the outputs of the exported graph; the file was not written")
    graph = _tidy(graph)
    for key, value in {**metadata_of(ready, imgsz), **(metadata or {})}.items():
        graph.metadata_props.add(key=key, value=str(value))
    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GateError(f"the exported graph is not valid ONNX: {' '.join(str(error).split())}") from error
    return graph


def metadata_of(model: torch.nn.Module, imgsz: tuple[int, int]) -> dict[str, Any]:
    """What stock Ultralytics writes into a file, and reads back when `YOLO("model.onnx")` opens it."""
    import ultralytics

    names = getattr(model, "names", None) or {i: f"class{i}" for i in range(model.model[-1].nc)}
    names = dict(enumerate(names)) if isinstance(names, (list, tuple)) else dict(names)
    architecture = Path(str((getattr(model, "yaml", None) or {}).get("yaml_file", "model"))).stem
    return {
        "description": f"Ultralytics {architecture} exported by edgeprune",
        "author": "edgeprune",
        "version": ultralytics.__version__,
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
        "stride": int(max(model.stride)),
        "task": getattr(model, "task", "detect"),
        "head": type(model.model[-1]).__name__,
        "batch": 1,
        "imgsz": [int(v) for v in imgsz],
        "names": names,
        "args": {"batch": 1, "dynamic": False, "simplify": True, "nms": False},
        "channels": _channels(model),
        "end2end": heads.output_of_network(model) == END2END,
    }


def prepare(model: torch.nn.Module, imgsz: tuple[int, int], *, end2end: bool | None = None) -> torch.nn.Module:
    """A copy of the model as it is exported: on the CPU, FP32, eval, fused, the head returning one tensor.

    Raises InputError for a size that is not a multiple of the stride, and for `end2end=True` without such a head.
    """
    stride = int(max(model.stride))
    if any(size < stride or size % stride for size in imgsz):
        raise InputError(f"--imgsz {imgsz[0]}x{imgsz[1]}: give multiples of the model's stride {stride}")
    ready = copy.deepcopy(model).cpu().float().eval()
    for parameter in ready.parameters():
        parameter.requires_grad_(False)
    head = ready.model[-1]
    one_to_one = heads.has_one_to_one(ready)
    if end2end and not one_to_one:
        raise InputError(f"this model's head ({type(head).__name__}) has no one-to-one branch: leave end2end out")
    if hasattr(type(head), "end2end"):
        # fuse() drops the branch that is not used, so the choice comes first.
        if one_to_one:
            head.end2end = True if end2end is None else end2end
        elif getattr(head, "_end2end", False):
            head.end2end = False
    with _quiet():
        ready = ready.fuse(verbose=False)
    anchors = sum((imgsz[0] // int(s)) * (imgsz[1] // int(s)) for s in ready.stride)
    # The anchors of another picture size are cached in `shape`.
    head.export, head.format, head.dynamic, head.shape = True, "onnx", False, None
    head.max_det = min(MAX_ROWS, anchors)  # which TopK keeps for good: another size needs another copy
    for module in ready.modules():
        # split() with constant sizes exports as one Split; chunk() as a dozen nodes of shape arithmetic.
        if hasattr(module, "forward_split"):
            module.forward = module.forward_split
    return ready


def parity(model: torch.nn.Module, exported: onnx.ModelProto | str | Path, pictures: Sequence[np.ndarray]) -> Parity:
    """Run the model in PyTorch and the file in ONNX Runtime on the same pictures, each (1, 3, h, w) float32 in 0..1.

    What is compared is told at `compare_outputs`. No picture at all compares nothing, and does not pass `check`.
    """
    import onnxruntime

    graph = exported if isinstance(exported, onnx.ModelProto) else onnx.load(str(exported))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    _, _, height, width = session.get_inputs()[0].shape
    kind = heads.output_of_file(graph)
    ready = prepare(model, (height, width), end2end=kind == END2END if heads.has_one_to_one(model) else None)
    found = []
    for picture in pictures:
        with torch.inference_mode():
            expected = ready(torch.from_numpy(picture)).numpy()
        found.append(compare_outputs(expected, session.run(None, {session.get_inputs()[0].name: picture})[0], kind))
    box, score, compared, unmatched = (list(column) for column in zip(*found)) if found else ([], [], [], [])
    return Parity(
        float(np.max(box, initial=0.0)), float(np.max(score, initial=0.0)), len(found), sum(compared), sum(unmatched)
    )


def compare_outputs(expected: np.ndarray, actual: np.ndarray, kind: str) -> tuple[float, float, int, int]:
    """The largest box difference in px, the largest score difference, boxes compared, boxes without a partner.

    kind: what both mean, see edgeprune_device.output.
    Raw heads (1, 4 + classes, anchors): anchor by anchor, over the anchors where either side has a score above 0.001;
    where there is none (an untrained model), over the 100 anchors with the highest scores.
    One-to-one heads (1, n, 6): the order of two nearly equal scores may change, so each expected row above 0.001 takes
    the nearest row of its class; rows as weak as the last one may fall off the list and are left out. A picture without
    such a row compares nothing.
    A value that is not finite on one side only counts as an infinite difference.
    """
    if expected.shape != actual.shape:
        return float("inf"), float("inf"), 0, 1
    if not np.isfinite(actual).all() or not np.isfinite(expected).all():
        return float("inf"), float("inf"), 1, 0
    if kind == END2END:
        return _compare_rows(expected[0].astype(np.float64), actual[0].astype(np.float64))
    return _compare_anchors(expected[0].astype(np.float64), actual[0].astype(np.float64))


def _compare_anchors(expected: np.ndarray, actual: np.ndarray) -> tuple[float, float, int, int]:
    best = np.maximum(expected[4:].max(0), actual[4:].max(0))
    chosen = np.flatnonzero(best > MIN_SCORE)
    if not len(chosen):
        chosen = np.argsort(best)[-100:]
    difference = np.abs(expected[:, chosen] - actual[:, chosen])
    return float(difference[:4].max()), float(difference[4:].max()), len(chosen), 0


def _compare_rows(expected: np.ndarray, actual: np.ndarray) -> tuple[float, float, int, int]:
    floor = max(MIN_SCORE, expected[-1, 4] + MAX_SCORE)
    rows = expected[expected[:, 4] > floor]
    box = score = 0.0
    unmatched = 0
    for row in rows:
        partners = actual[actual[:, 5] == row[5]]
        if not len(partners):
            unmatched += 1
            continue
        # A score of 1 weighs as much as 100 px: the same place may be found twice with different scores.
        distance = np.abs(partners[:, :4] - row[:4]).max(1) + 100 * np.abs(partners[:, 4] - row[4])
        nearest = partners[distance.argmin()]
        box = max(box, float(np.abs(nearest[:4] - row[:4]).max()))
        score = max(score, float(abs(nearest[4] - row[4])))
    return box, score, len(rows), unmatched


def _channels(model: torch.nn.Module) -> int:
    return int((getattr(model, "yaml", None) or {}).get("channels", 3))


def trace(model: torch.nn.Module, height: int, width: int, opset: int) -> onnx.ModelProto:
    """The graph of one traced run.

    The TorchScript exporter, because it alone keeps opset 17 (the dynamo exporter writes 18 and converts down) and
    names nodes after the model's layers. PyTorch 2.15 still has it behind `dynamo=False`.
    """
    picture = torch.zeros(1, _channels(model), height, width)
    target = io.BytesIO()
    with _quiet(), torch.no_grad():
        model(picture)  # fills the anchor cache, so that the anchors become constants
        torch.onnx.export(
            model,
            (picture,),
            target,
            opset_version=opset,
            input_names=["images"],
            output_names=["output0"],
            do_constant_folding=True,
            dynamo=False,
        )
    return onnx.load_from_string(target.getvalue())


def _tidy(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Constants as initializers, so that a weight is found in one place; a plain IR version and producer, and not what
    onnxsim writes of its own work into the metadata."""
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's deprecation and tracing warnings (the constants they speak of are wanted) and progress."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "ultralytics")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
