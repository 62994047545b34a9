"""The head that a detector answers with, and the meaning of its output.

YOLOv10 and YOLO26 have two heads: one-to-many, whose boxes need NMS, and one-to-one, whose rows need none. Where there
is a one-to-one head, this module is about that head, because it is the one that is exported.

The network, the file's metadata or the bundle's manifest states the meaning of an output. The shape only has to agree.
It decides where nothing is stated, and only if it can be read in one way.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from edgeprune_device.errors import InputError
from edgeprune_device.output import END2END, RAW, fits

if TYPE_CHECKING:  # the page reads the words only
    import onnx
    import torch

__all__ = ["NOTE", "ONE_TO_ONE", "has_one_to_one", "of_file", "of_network", "output_of_file", "output_of_network"]

#: Its name on the card, on the page and in tables.
ONE_TO_ONE = "one-to-one"
#: The note beside a figure of this head.
NOTE = (
    "the one-to-one head, without NMS, as it is exported; Ultralytics' own val and predict take the one-to-many head "
    "with NMS unless nms=False"
)


def has_one_to_one(model: torch.nn.Module) -> bool:
    """Whether an Ultralytics detector has a one-to-one head."""
    return getattr(model.model[-1], "one2one_cv2", None) is not None


def of_network(model: torch.nn.Module) -> str | None:
    """The head that a network's figures are of; None where it has only one."""
    return ONE_TO_ONE if has_one_to_one(model) else None


def of_file(model: onnx.ModelProto) -> str | None:
    """The head that a file's figures are of; None where the file does not name it, or the network has only one."""
    return ONE_TO_ONE if _metadata(model).get("end2end") is True else None


def output_of_network(ready: torch.nn.Module) -> str:
    """The meaning of the output of a network that `model.prepare` has made ready: RAW or END2END."""
    return END2END if getattr(ready.model[-1], "end2end", False) else RAW


def output_of_file(
    model: onnx.ModelProto, stated: str | None = None, *, classes: int | None = None, what: str = "the model"
) -> str:
    """The meaning of the output of an ONNX file: RAW or END2END.

    Args:
        model: The file.
        stated: The meaning that a bundle's manifest states; None takes the file's metadata, as edgeprune and
            Ultralytics write it.
        classes: The number of classes, where the metadata does not name them.
        what: Begins the message of an error.

    Raises:
        InputError: The shape contradicts the stated meaning, or nothing is stated and the shape can be read in both
            ways or in none.
    """
    meta = _metadata(model)
    shape = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    names = meta.get("names")
    classes = len(names) if isinstance(names, (dict, list)) else classes
    if classes is None:  # then any number fits
        classes = shape[1] - 4 if len(shape) == 3 and shape[1] > 4 else 0
    # A dimension that the file leaves open decides nothing: each output is checked again when it is computed.
    possible = [kind for kind in (RAW, END2END) if not all(shape) or fits(shape, kind, classes)]
    stated = stated or _stated(meta)
    if stated in possible or (stated is None and len(possible) == 1):
        return stated or possible[0]
    if stated is not None:
        raise InputError(
            f"{what}: its output is stated to be {stated}, which {shape} is not for {classes} classes; export it again"
        )
    if possible:
        raise InputError(
            f"{what}: its output {shape} for {classes} classes can be read as {' and as '.join(possible)}, and no "
            "metadata says which; export it with edgeprune or Ultralytics"
        )
    raise InputError(
        f"{what}: an output of shape {shape} is no detector's: (1, 4 + classes, N), or (1, n, 6) end to end"
    )


def _stated(meta: dict[str, Any]) -> str | None:
    """The meaning in the metadata, as Ultralytics reads it back: end to end by the head, or by NMS inside the file."""
    args = meta.get("args")
    inside = isinstance(args, dict) and args.get("nms") is True
    if inside or "end2end" in meta:
        return END2END if inside or meta["end2end"] is True else RAW
    return None


def _metadata(model: onnx.ModelProto) -> dict[str, Any]:
    """The readable values of the entries that describe the output."""
    found = {}
    for entry in model.metadata_props:
        if entry.key in ("names", "args", "end2end"):
            try:
                found[entry.key] = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                continue
    return found
