"""The models that can be compared: .pt, .onnx and .epb files, and networks in memory."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from edgeprune_device.errors import InputError
from edgeprune_device.files import sha256
from edgeprune_device.hint import no_such_file
from edgeprune_device.trust.bundle import Bundle

from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.measuring.sessions import OnnxSession, TorchSession
from edgeprune.model import checkpoint
from edgeprune.model.count import Cost, count, widths
from edgeprune.model.head import of_file, of_network, output_of_file

#: The caveat of a file with FP16 or signed INT8 values.
FOR_A_GPU = "a file for a GPU, run by ONNX Runtime on this CPU: its time here says nothing of the target's"


@dataclass(frozen=True)
class Item:
    """A model to compare.

    Attributes:
        name: name in the comparison.
        path: its file.
        size_bytes: size of the file, bytes.
        sha256: hash of the file; None if unknown.
        names: class names.
        imgsz: network input, px.
        cost: parameters, MACs and channels; None if they cannot be counted in this form.
        layers: {convolution: output channels}; None if unknown.
        model: the ONNX bytes that are timed.
        kind: meaning of the model's output.
        session: opens the session that the accuracy is measured with.
        caveat: reason not to compare its latency; None: none.
        head: the head that answers, of a network that has two.
    """

    name: str
    path: Path
    size_bytes: int
    sha256: str | None
    names: tuple[str, ...]
    imgsz: int
    cost: Cost | None
    layers: dict[str, int] | None
    model: bytes
    kind: str
    session: Callable[[], Any]
    caveat: str | None = None
    head: str | None = None


def open_item(text: str | Path, imgsz: int | None, name: str | None = None) -> list[Item]:
    """Open a file as items: a .pt or an .onnx is one item, a bundle one item for each model in it.

    Args:
        text: the file.
        imgsz: network input of a checkpoint, px; None: the size that it was trained at.
        name: name in the comparison; None: the file's name.

    Raises:
        InputError: the file is missing, damaged or of an unknown kind.
        SignatureError: the bundle is not trusted.
    """
    path = Path(text)
    if not path.is_file():
        raise InputError(no_such_file(path))
    if path.suffix == ".pt":
        loaded = checkpoint.load(path)
        return [of_model(loaded, imgsz, name or path.name, path.stat().st_size, sha256(path))]
    if path.suffix == ".onnx":
        data = path.read_bytes()
        return [_onnx(name or path.name, path, data, len(data))]
    if path.suffix == ".epb":
        bundle = Bundle.open(path)
        present = {p: e["payload"] for p, e in bundle.manifest.models.items() if e["payload"]}
        return [
            _onnx(f"{name or path.stem}:{p}", path, bundle.read(file), bundle.payloads[file].size_bytes,
                  bundle.manifest.output)
            for p, file in present.items()
        ]  # fmt: skip
    raise InputError(f"{path}: compare takes .pt, .onnx and .epb files, and .json reports")


def of_model(
    source: checkpoint.Checkpoint, imgsz: int | None, name: str, size_bytes: int, digest: str | None = None
) -> Item:
    """Make an item of a network; its ONNX export is timed.

    Args:
        source: the network.
        imgsz: network input, px; None: the size that it was trained at.
        name: name in the comparison.
        size_bytes: size of its file, bytes.
        digest: SHA-256 of its file; None if unknown.
    """
    size = source.input_size(imgsz)
    exported = to_onnx(source.model, (size, size))
    return Item(
        name, source.path, size_bytes, digest, tuple(source.names), size, count(source.model, (size, size)),
        widths(source.model), exported.SerializeToString(), output_of_file(exported),
        lambda: TorchSession(source.model, size), head=of_network(source.model),
    )  # fmt: skip


def _onnx(name: str, path: Path, data: bytes, size_bytes: int, stated: str | None = None) -> Item:
    """Make an item of an ONNX file; `stated` is the output's meaning in a manifest."""
    try:
        model = onnx.load_from_string(data)
        shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    except Exception as error:  # protobuf's DecodeError and similar errors
        raise InputError(f"{path}: not an ONNX file ({' '.join(str(error).split())[:80]})") from error
    if len(shape) != 4 or shape[0] != 1 or shape[2] != shape[3] or not shape[2]:
        raise InputError(f"{path}: input of shape {shape}; compare takes static (1, 3, N, N) detectors")
    names, kind = _names(model, path), output_of_file(model, stated, what=str(path))
    # Accuracy as ONNX Runtime computes it on this machine, which also measures the latency.
    return Item(
        name, path, size_bytes, _sha256(data), names, shape[2], None, layers_of(model), data, kind,
        lambda: OnnxSession(data, kind), FOR_A_GPU if for_a_gpu(model) else None, of_file(model),
    )  # fmt: skip


def for_a_gpu(model: onnx.ModelProto) -> bool:
    """Whether a file has FP16 values or signed INT8 activations, which run slowly on every CPU."""
    half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
    types = {t.name: t.data_type for t in model.graph.initializer}
    quantized = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    signed = any(types.get(n.input[2]) == onnx.TensorProto.INT8 for n in quantized if len(n.input) > 2)
    return half or signed


def layers_of(model: onnx.ModelProto) -> dict[str, int]:
    """The output channels of each convolution as {layer: channels}, by the names of the weights in the network."""
    shapes = {t.name: t.dims for t in model.graph.initializer}
    makers = {n.output[0]: n for n in model.graph.node}
    found = {}
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        name = node.input[1]
        while name not in shapes and name in makers:  # behind Q/DQ or a cast
            name = makers[name].input[0]
        layer = re.match(r"(.*?)\.weight", name)
        if layer and name in shapes:
            found[layer[1]] = int(shapes[name][0])
    return found


def _names(model: onnx.ModelProto, path: Path) -> tuple[str, ...]:
    meta = {p.key: p.value for p in model.metadata_props}
    try:
        names = ast.literal_eval(meta["names"])
        return tuple(str(names[i]) for i in range(len(names)))
    except (KeyError, ValueError, SyntaxError, TypeError):
        raise InputError(f"{path}: no class names in its metadata; export it with edgeprune or Ultralytics") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
