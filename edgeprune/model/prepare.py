"""A network as it is exported and evaluated: one output tensor, float32, fused, on the CPU."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import torch
from edgeprune_device.errors import InputError
from edgeprune_device.output import MAX_ROWS

from edgeprune.model.head import has_one_to_one


def prepare(model: torch.nn.Module, imgsz: tuple[int, int], *, end2end: bool | None = None) -> torch.nn.Module:
    """Make a copy of the model for export: on the CPU, FP32, in eval mode, fused, with a head that returns one tensor.

    Args:
        model: An Ultralytics detector; it is not changed.
        imgsz: (H, W) of the image, px, multiples of the model's largest stride.
        end2end: Whether to take the one-to-one head; None takes it where the model has one.

    Raises:
        InputError: The size is not a multiple of the stride, or `end2end` is True and the model has no such head.
    """
    stride = int(max(model.stride))
    if any(size < stride or size % stride for size in imgsz):
        raise InputError(f"--imgsz {imgsz[0]}x{imgsz[1]}: give multiples of the model's stride {stride}")
    ready = copy.deepcopy(model).cpu().float().eval()
    for parameter in ready.parameters():
        parameter.requires_grad_(False)
    head = ready.model[-1]
    one_to_one = has_one_to_one(ready)
    if end2end and not one_to_one:
        raise InputError(f"this model's head ({type(head).__name__}) has no one-to-one branch: leave end2end out")
    if hasattr(type(head), "end2end"):
        # fuse() drops the branch that is not used, so the choice comes first.
        if one_to_one:
            head.end2end = True if end2end is None else end2end
        elif getattr(head, "_end2end", False):
            head.end2end = False
    with quiet():
        ready = ready.fuse(verbose=False)
    anchors = sum((imgsz[0] // int(s)) * (imgsz[1] // int(s)) for s in ready.stride)
    # `shape` caches the anchors of another image size.
    head.export, head.format, head.dynamic, head.shape = True, "onnx", False, None
    head.max_det = min(MAX_ROWS, anchors)  # TopK keeps this number: another size needs another copy
    for module in ready.modules():
        # split() with constant sizes exports as one Split; chunk() as a dozen nodes of shape arithmetic.
        if hasattr(module, "forward_split"):
            module.forward = module.forward_split
    return ready


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block, suppress the exporter's progress and its deprecation and tracing warnings.

    The tracing warnings report constants, which are intended here.
    """
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
