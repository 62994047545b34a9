"""Explains in one line why TensorRT's parser or builder refused a file: node, layer, message and remedy."""

from __future__ import annotations

from typing import Any, List, Optional

from edgeprune_device import onnx_file
from edgeprune_device.engine.layers import layer_of_node
from edgeprune_device.option import named

__all__ = ["is_of_memory", "of_builder", "of_parser"]

#: The newest opset of TensorRT 8's parsers (8.5 and 8.6); a release without strong typing is TensorRT 8.
_OPSET_OF_8 = 17


def of_parser(parser: Any, log: List[str], model: bytes, precision: str, typed: bool) -> str:
    """Explain a refusal of the parser.

    An example: "NonMaxSuppression /model.22/NMS (layer model.22): no importer registered …; this TensorRT has no such
    operator: export the model without it, or use a newer JetPack".

    Args:
        parser: TensorRT's parser, with its errors.
        log: Error lines of TensorRT's log.
        model: Bytes of the ONNX file.
        precision: Precision of the file.
        typed: Whether this release has strongly typed networks.
    """
    if not parser.num_errors:
        words = log[0] if log else "the parser gave no reason"
        return f"{words}; {_advice(words, None, model, precision, typed)}"
    error = parser.get_error(0)
    where, words = _where(error, model), " ".join(error.desc().split()).rstrip(".")
    code = getattr(error.code(), "name", str(error.code()))
    return f"{where}{words}; {_advice(words, code, model, precision, typed)}"


def of_builder(log: List[str], precision: str) -> str:
    """Explain a refusal of the builder, from its log.

    Args:
        log: Error lines of TensorRT's log.
        precision: Precision of the file.
    """
    words = "; ".join(dict.fromkeys(log)) or "the builder gave no reason"
    if is_of_memory(log):
        return f"{words}; close other programs, or give less scratch memory ({named('workspace', 256)})"
    if "could not find any implementation" in words.lower():
        return f"{words}; give more scratch memory ({named('workspace', 2048)})" + _other(precision)
    return words


def is_of_memory(log: List[str]) -> bool:
    """Whether the builder's log reports that memory ran out."""
    low = " ".join(log).lower()
    return any(words in low for words in ("out of memory", "outofmemory", "insufficient memory"))


def _where(error: Any, model: bytes) -> str:
    """ "Conv /model.0/conv/Conv (layer model.0.conv): ", or nothing if no node is known."""
    if hasattr(error, "node_name"):
        name, operator = error.node_name(), error.node_operator()
    else:
        name, operator = onnx_file.node(model, error.node()) or ("", "")
    if not (name or operator):
        return ""
    layer = f" (layer {layer_of_node(name)})" if name else f" (node {error.node()})"
    return " ".join(part for part in (operator, name) if part) + layer + ": "


def _advice(words: str, code: Optional[str], model: bytes, precision: str, typed: bool) -> str:
    opset, low = onnx_file.opset(model), words.lower()
    if code == "MODEL_DESERIALIZE_FAILED" or opset is None:
        return "the file is damaged or not ONNX; copy the file again"
    if not typed and opset > _OPSET_OF_8:
        return (
            f"opset too new for TensorRT 8 (found {opset}, expected at most {_OPSET_OF_8}); use JetPack 6.1 or later"
            + _other(precision)
        )
    if "no importer registered" in low or "plugin not found" in low or "unsupported operator" in low:
        return "this TensorRT does not support the operator; export the model without it, or use a newer JetPack"
    if "zero point" in low:
        return "TensorRT supports only symmetric quantization; quantize the model again with edgeprune" + _other(
            precision
        )
    if code == "UNSUPPORTED_NODE_DATATYPE" or "type" in low:
        return "this TensorRT does not support the types of this node" + (
            _other(precision) or "; export the model again"
        )
    return "export the model again, or use a newer JetPack" + _other(precision)


def _other(precision: str) -> str:
    others = {"int8-fp16": "int8 or fp16", "int8": "fp16", "fp16": "fp32"}
    if precision not in others:
        return ""
    return f", or use another file of the bundle ({named('precision', others[precision])})"
