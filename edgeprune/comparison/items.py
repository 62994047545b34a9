"""The models that can be compared: .pt, .onnx and .epb files, and networks in memory."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from edgeprune_device import onnx_file
from edgeprune_device.errors import InputError
from edgeprune_device.files import sha256
from edgeprune_device.layouts import FLOAT32_NCHW, UINT8_NHWC, shape_of
from edgeprune_device.progress import Say, silent
from edgeprune_device.size import Size, SizeLike
from edgeprune_device.trust.bundle import Bundle

from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.measuring.sessions import OnnxSession, TorchSession
from edgeprune.model import checkpoint
from edgeprune.model.archive import existing
from edgeprune.model.count import Cost, count, widths
from edgeprune.model.head import layout_of_file, of_file, of_network, output_of_file, task_of_file, two_heads

#: The caveat of a file with FP16 or signed INT8 values.
FOR_A_GPU = "made for a GPU but timed on this CPU, so its latency does not predict the target's"


@dataclass(frozen=True)
class Item:
    """A model to compare.

    Attributes:
        name: name in the comparison.
        path: its file.
        size_bytes: size of the file, bytes.
        sha256: hash of the file; None if unknown.
        names: class names.
        imgsz: size of the network's input, px.
        cost: parameters, MACs and channels; None if they cannot be counted in this form.
        layers: {convolution: output channels}; None if unknown.
        model: the ONNX bytes that are timed.
        kind: format of the model's outputs.
        layout: layout of the model's input.
        task: its task.
        session: opens the session for measuring the accuracy.
        caveat: reason not to compare its latency; None if there is none.
        head: the head that is measured, if the network has two.
    """

    name: str
    path: Path
    size_bytes: int
    sha256: str | None
    names: tuple[str, ...]
    imgsz: Size
    cost: Cost | None
    layers: dict[str, int] | None
    model: bytes
    kind: str
    task: str
    session: Callable[[torch.device], TorchSession | OnnxSession]
    caveat: str | None = None
    head: str | None = None
    layout: str = FLOAT32_NCHW


def open_item(
    text: str | Path,
    imgsz: SizeLike | None,
    name: str | None = None,
    warn: Say = silent,
    *,
    head: str | None = None,
    shapes: Iterable[tuple[int, int]] | None = None,
) -> list[Item]:
    """Open a file as items: a .pt or .onnx file is one item, a bundle has one item for each of its models.

    Args:
        text: the file.
        imgsz: input size of a checkpoint, px; None for its training size.
        name: name in the comparison; None for the file's name.
        warn: receives one line if a network was trained on images that are not square.
        head: the head of a network with two (`of_model`).
        shapes: (height, width) of the data set's images, px; None without a data set.

    Raises:
        InputError: the file is missing, damaged or of an unknown kind.
        SignatureError: the bundle is not trusted.
    """
    path = existing(text)
    if path.suffix == ".pt":
        loaded = checkpoint.load(path, fused=True)
        size, digest = path.stat().st_size, sha256(path)
        return [of_model(loaded, imgsz, name or path.name, size, digest, warn, head=head, shapes=shapes)]
    if path.suffix == ".onnx":
        data = path.read_bytes()
        return [_onnx(name or path.name, path, data, len(data))]
    if path.suffix == ".epb":
        bundle = Bundle.open(path)
        manifest = bundle.manifest
        present = {p: e["payload"] for p, e in manifest.models.items() if e["payload"]}
        return [
            _onnx(f"{name or path.stem}:{p}", path, bundle.read(file), bundle.payloads[file].size_bytes,
                  (manifest.output, manifest.layout))
            for p, file in present.items()
        ]  # fmt: skip
    raise InputError(f"{path}: unknown file type (found {path.suffix!r}, expected .pt, .onnx, .epb or .json)")


def of_model(
    source: checkpoint.Checkpoint,
    imgsz: SizeLike | None,
    name: str,
    size_bytes: int,
    digest: str | None = None,
    warn: Say = silent,
    *,
    head: str | None = None,
    shapes: Iterable[tuple[int, int]] | None = None,
) -> Item:
    """Make an item from a network; its ONNX export is timed.

    Args:
        source: the network.
        imgsz: input size, px; None for its training size.
        name: name in the comparison.
        size_bytes: size of its file, bytes.
        digest: SHA-256 of its file; None if unknown.
        warn: receives one line if the network was trained on images that are not square.
        head: the head to measure if the network has two; None for the checkpoint's own choice.
        shapes: (height, width) of the data set's images, px; None without a data set.
    """
    if two_heads(source.model):
        source = source.with_head(head)
    size = source.input_size(imgsz, warn, shapes=shapes)
    exported = to_onnx(source.model, size)
    return Item(
        name, source.path, size_bytes, digest, tuple(source.names), size, count(source.model, size),
        widths(source.model), exported.SerializeToString(), output_of_file(exported), source.task,
        lambda device: TorchSession(source.model, size, device), head=of_network(source.model),
    )  # fmt: skip


def _onnx(
    name: str, path: Path, data: bytes, size_bytes: int, stated: tuple[str | None, str | None] = (None, None)
) -> Item:
    """Make an item from an ONNX file; `stated` is (output format, input layout) in a manifest."""
    onnx_file.refuse_outside(data, str(path))
    try:
        model = onnx.load_from_string(data)
        layout = layout_of_file(model, stated[1], what=str(path))
        shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    except InputError:
        raise
    except Exception as error:  # protobuf's DecodeError and similar errors
        raise InputError(f"{path}: not an ONNX file ({' '.join(str(error).split())[:80]})") from error
    size = Size(*(shape[1:3] if layout == UINT8_NHWC else shape[2:]))
    if tuple(shape) != shape_of(layout, size) or 0 in size:
        found = ", ".join(str(side or "dynamic") for side in shape)
        expected = "(1, H, W, 3)" if layout == UINT8_NHWC else "(1, 3, H, W)"
        raise InputError(
            f"{path}: unsupported input shape (found ({found}), expected {expected}); export the model with a static "
            "input shape"
        )
    names, kind = _names(model, path), output_of_file(model, stated[0], what=str(path))
    # ONNX Runtime on this machine measures both the accuracy and the latency.
    return Item(
        name, path, size_bytes, _sha256(data), names, size, None, layers_of(model), data, kind, task_of_file(model),
        lambda _: OnnxSession(data, kind, layout), FOR_A_GPU if for_a_gpu(model) else None, of_file(model), layout,
    )  # fmt: skip


def for_a_gpu(model: onnx.ModelProto) -> bool:
    """Whether a file has FP16 values or signed INT8 activations, which are slow on every CPU."""
    half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
    types = {t.name: t.data_type for t in model.graph.initializer}
    quantized = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    signed = any(types.get(n.input[2]) == onnx.TensorProto.INT8 for n in quantized if len(n.input) > 2)
    return half or signed


def layers_of(model: onnx.ModelProto) -> dict[str, int]:
    """The output channels of each convolution as {layer: channels}, by the names of the weights in the network."""
    shapes = {t.name: t.dims for t in model.graph.initializer}
    makers = {n.output[0]: n for n in model.graph.node}
    channels = {}
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        name = node.input[1]
        while name not in shapes and name in makers:  # through Q/DQ or a cast
            name = makers[name].input[0]
        layer = re.match(r"(.*?)\.weight", name)
        if layer and name in shapes:
            channels[layer[1]] = int(shapes[name][0])
    return channels


def _names(model: onnx.ModelProto, path: Path) -> tuple[str, ...]:
    meta = {p.key: p.value for p in model.metadata_props}
    try:
        names = ast.literal_eval(meta["names"])
        return tuple(str(names[i]) for i in range(len(names)))
    except (KeyError, ValueError, SyntaxError, TypeError):
        raise InputError(
            f"{path}: no class names in the metadata; export the model with edgeprune or Ultralytics"
        ) from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
