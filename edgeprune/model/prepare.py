"""Prepares a network for export and evaluation: one output tensor, float32, fused, on the CPU."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from edgeprune_device.errors import InputError
from edgeprune_device.option import named
from edgeprune_device.output import MAX_ROWS

from edgeprune.model.head import is_end2end, last_layer, strides, two_heads


def prepare(model: torch.nn.Module, imgsz: tuple[int, int], *, end2end: bool | None = None) -> torch.nn.Module:
    """Make a copy of the model for export: on the CPU, FP32, in eval mode, fused, with a head that returns one tensor.

    Args:
        model: An Ultralytics detector; it is not changed.
        imgsz: (H, W) of the image, px, multiples of the model's largest stride.
        end2end: Whether to use the one-to-one head; None leaves the choice of the model (head.select).

    Raises:
        InputError: The size is not a multiple of the stride, or `end2end` is True and the model has no such head.
    """
    stride = max(strides(model))
    if any(size < stride or size % stride for size in imgsz):
        size = f"{imgsz[0]}x{imgsz[1]}"
        raise InputError(f"{named('imgsz', size)}: not multiples of {stride} px, the model's stride")
    ready: Any = copy.deepcopy(model).cpu().float().eval()
    for parameter in ready.parameters():
        parameter.requires_grad_(False)
    head = last_layer(ready)
    if end2end and not (two_heads(ready) or is_end2end(ready)):
        raise InputError(
            f"end2end: not available, because this model's head ({type(head).__name__}) has no one-to-one branch; "
            "leave the option out"
        )
    if end2end is not None and two_heads(ready):
        head.end2end = end2end  # before fuse(), which drops the unused branch
    with quiet():
        fused: torch.nn.Module = ready.fuse(verbose=False)
    anchors = sum((imgsz[0] // stride) * (imgsz[1] // stride) for stride in strides(fused))
    # `shape` may cache the anchors of another image size.
    head.export, head.format, head.dynamic, head.shape = True, "onnx", False, None
    head.max_det = min(MAX_ROWS, anchors)  # TopK keeps this number, so each size needs its own copy
    module: Any
    for module in fused.modules():
        # split() with constant sizes exports as one Split node, chunk() as a dozen nodes of shape arithmetic.
        if hasattr(module, "forward_split"):
            module.forward = module.forward_split
    return fused


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block, suppress the exporter's progress and its deprecation and tracing warnings.

    The tracing warnings report constants, which are intended.
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
