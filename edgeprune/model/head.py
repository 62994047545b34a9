"""The head of a detector, and the meaning of its output.

YOLOv10 and YOLO26 have two heads: one-to-many, whose boxes need NMS, and one-to-one, whose rows need none. One of them
is exported and measured. The network itself states which: the attribute `end2end` of Ultralytics' head, which its
checkpoint keeps. The other head stays in checkpoints, but costs nothing in a plan.

The network, the file's metadata or the bundle's manifest states the meaning of an output, and the shape must agree. The
shape decides only if nothing states the meaning and only one meaning is possible.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from edgeprune_device.errors import InputError
from edgeprune_device.layouts import FLOAT32_NCHW, UINT8_NHWC
from edgeprune_device.option import named
from edgeprune_device.output import BEST, END2END, RAW, fits

from edgeprune import tasks
from edgeprune.options import HEADS

if TYPE_CHECKING:  # the page needs only the texts, not these libraries
    import onnx
    import torch

__all__ = [
    "NOTES",
    "ONE_TO_MANY",
    "ONE_TO_ONE",
    "idle",
    "is_end2end",
    "last_layer",
    "layout_of_file",
    "of_file",
    "of_network",
    "one_to_one",
    "output_of_file",
    "output_of_network",
    "select",
    "strides",
    "task_of_file",
    "two_heads",
]

#: The names of the heads: values of `--head`, also on the card, on the page and in tables.
ONE_TO_ONE, ONE_TO_MANY = HEADS
#: The note beside a figure of each head.
NOTES = {
    ONE_TO_ONE: "the one-to-one head without NMS, as exported; Ultralytics' val and predict use the one-to-many head "
    "with NMS unless nms=False",
    ONE_TO_MANY: "the one-to-many head with NMS, as exported; Ultralytics' val and predict also use this head unless "
    "nms=False",
}
#: The names of the modules of the one-to-one head begin with this; the rest is the name in the one-to-many head.
_PREFIX = "one2one_"


def last_layer(model: torch.nn.Module) -> Any:
    """The last layer of an Ultralytics network, which is its head; its attributes depend on its class."""
    layers: Any = model.model
    return layers[-1]


def strides(model: torch.nn.Module) -> list[int]:
    """The strides of an Ultralytics network's output feature maps, px."""
    values: Any = model.stride
    return [int(stride) for stride in values]


def two_heads(model: torch.nn.Module) -> bool:
    """Whether an Ultralytics network has a one-to-many and a one-to-one head. `fuse` leaves one of them."""
    if not hasattr(model, "model"):  # not Ultralytics' network
        return False
    head = last_layer(model)
    return getattr(head, "one2one_cv2", None) is not None and head.cv2 is not None


def is_end2end(model: torch.nn.Module) -> bool:
    """Whether a network is exported and measured with its one-to-one head."""
    return bool(getattr(last_layer(model), "end2end", False))


def select(model: torch.nn.Module, head: str | None) -> None:
    """Choose the head that is exported and measured; the network keeps the choice, also in its checkpoint.

    Args:
        model: The network; only its attribute `end2end` changes.
        head: ONE_TO_ONE or ONE_TO_MANY; None leaves the choice of the checkpoint.

    Raises:
        InputError: The network does not have this head.
    """
    if head is None:
        return
    wanted = head == ONE_TO_ONE
    if two_heads(model):
        last_layer(model).end2end = wanted
    elif wanted != is_end2end(model):
        only = ONE_TO_MANY if wanted else ONE_TO_ONE
        raise InputError(f"{named('head', head)}: this model has only the {only} head; leave the option out")


def idle(model: torch.nn.Module) -> tuple[str, ...]:
    """The names of the modules of the head that is not exported; empty if the network has only one."""
    if not two_heads(model):
        return ()
    own = _one_to_one(model)
    return tuple(name.replace(_PREFIX, "") for name in own) if is_end2end(model) else own


def one_to_one(model: torch.nn.Module) -> tuple[str, ...]:
    """The names of the modules of the one-to-one head if it is the exported one of two; else empty."""
    return _one_to_one(model) if is_end2end(model) and two_heads(model) else ()


def _one_to_one(model: torch.nn.Module) -> tuple[str, ...]:
    blocks: Any = model.model
    return tuple(
        f"model.{len(blocks) - 1}.{name}" for name, _ in last_layer(model).named_children() if name.startswith(_PREFIX)
    )


def of_network(model: torch.nn.Module) -> str | None:
    """The head of a network's figures; None if it never had two."""
    if getattr(last_layer(model), "one2one_cv2", None) is None:
        return None
    return ONE_TO_ONE if is_end2end(model) else ONE_TO_MANY


def of_file(model: onnx.ModelProto) -> str | None:
    """The head of a file's figures; None if the file does not name it, or the network has only one."""
    return ONE_TO_ONE if _metadata(model).get("end2end") is True else None


def output_of_network(ready: torch.nn.Module) -> str:
    """The meaning of the output of a network from `model.prepare`: RAW or END2END."""
    return END2END if is_end2end(ready) else RAW


def task_of_file(model: onnx.ModelProto) -> str:
    """The name of the task that a file's metadata state, as edgeprune and Ultralytics write them; else detection."""
    return next((entry.value for entry in model.metadata_props if entry.key == "task"), tasks.DETECT.name)


def output_of_file(
    model: onnx.ModelProto, stated: str | None = None, *, classes: int | None = None, what: str = "the model"
) -> str:
    """The meaning of the outputs of an ONNX file: RAW, BEST or END2END.

    Args:
        model: The file.
        stated: The meaning that a bundle's manifest states; None takes the file's metadata, as edgeprune and
            Ultralytics write it.
        classes: The number of classes, if the metadata does not give it.
        what: Begins the message of an error.

    Raises:
        InputError: The shape contradicts the stated meaning, or no meaning is stated and the shape allows both or
            none; or the file is for a task that is not supported.
    """
    extra = tasks.get(task_of_file(model)).on_device.extra
    meta = _metadata(model)
    shape = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    names = meta.get("names")
    classes = len(names) if isinstance(names, (dict, list)) else classes
    if classes is None:  # any number is possible
        classes = max(shape[1] - 4 - extra, 0) if len(shape) == 3 else 0
    # A dynamic dimension excludes nothing: each output is checked again when it is computed.
    stated = stated or _stated(meta)
    kinds = (BEST,) if stated == BEST else (RAW, END2END)  # no shape alone means BEST
    possible = [kind for kind in kinds if not all(shape) or fits(shape, kind, classes, extra)]
    if stated in possible or (stated is None and len(possible) == 1):
        return stated or possible[0]
    if stated is not None:
        raise InputError(
            f"{what}: wrong output shape for its stated format, {stated}, and {classes} classes (found {shape}); "
            "export the model again"
        )
    if possible:
        raise InputError(
            f"{what}: ambiguous output (shape {shape} for {classes} classes can be {' or '.join(possible)}, and the "
            "metadata does not state the format); export the model with edgeprune or Ultralytics"
        )
    raise InputError(
        f"{what}: not a detector (found output shape {shape}, expected (1, {4 + extra} + classes, N), or "
        f"(1, n, {6 + extra}) end to end)"
    )


def layout_of_file(model: onnx.ModelProto, stated: str | None = None, *, what: str = "the model") -> str:
    """The layout of the input of an ONNX file, see `edgeprune_device.layouts`.

    Args:
        model: The file.
        stated: The layout that a bundle's manifest states; None takes the file's metadata, as edgeprune writes it into
            device variants.
        what: Begins the message of an error.

    Raises:
        InputError: The input has another type or shape than the layout.
    """
    import onnx

    stated = stated or _metadata(model).get("edgeprune_layout", FLOAT32_NCHW)
    tensor = model.graph.input[0].type.tensor_type
    shape = [d.dim_value for d in tensor.shape.dim]
    pixels = tensor.elem_type == onnx.TensorProto.UINT8
    if len(shape) != 4 or pixels != (stated == UINT8_NHWC) or (pixels and shape[3] != 3):
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise InputError(
            f"{what}: wrong input for its layout, {stated} (found {kind} {shape}, expected "
            f"{'UINT8 (1, H, W, 3)' if stated == UINT8_NHWC else '(1, 3, H, W)'}); export the "
            "model with a static input shape"
        )
    return str(stated)


def _stated(meta: dict[str, Any]) -> str | None:
    """The meaning in the metadata: a device variant's own, else as Ultralytics reads it.

    For Ultralytics, a file is end to end through the head or through NMS in the file.
    """
    if "edgeprune_output" in meta:
        return str(meta["edgeprune_output"])
    args = meta.get("args")
    inside = isinstance(args, dict) and args.get("nms") is True
    if inside or "end2end" in meta:
        return END2END if inside or meta["end2end"] is True else RAW
    return None


def _metadata(model: onnx.ModelProto) -> dict[str, Any]:
    """The metadata entries that describe input and output, parsed."""
    metadata: dict[str, Any] = {}
    for entry in model.metadata_props:
        if entry.key in ("edgeprune_layout", "edgeprune_output"):
            metadata[entry.key] = entry.value
        if entry.key in ("names", "args", "end2end"):
            try:
                metadata[entry.key] = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                continue
    return metadata
