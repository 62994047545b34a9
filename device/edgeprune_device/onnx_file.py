"""Reads the opset, node names and references to other files from an ONNX file, without the onnx package.

TensorRT 8's parser reports only the index of a refused node. An ONNX file is a protobuf message:
ModelProto.graph is field 7 and opset_import 8, GraphProto.node 1, NodeProto.name 3 and op_type 4.

A tensor can be stored in another file ("external data"), which the signature does not cover. A node EPContext can
contain or name a built engine, which bypasses the checks of engines. `outside` finds both. It reads every field that a
protobuf parser reads, in any position, so that no runtime sees a tensor or node that `outside` misses.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, Optional, Set, Tuple, Union

from edgeprune_device.errors import InputError
from edgeprune_device.printable import printable

__all__ = ["names", "node", "opset", "outside", "refuse_outside"]

_VARINT, _FIXED64, _BYTES, _GROUP, _END, _FIXED32 = 0, 1, 2, 3, 4, 5
_MOST_FIELDS = 2_000_000  # that `outside` reads; a large detector has about ten thousand
_MOST_IN_GROUPS = 1000  # fields of one message
#: {message: {field: message}}: the messages that can contain tensors and nodes.
_WITHIN: Dict[str, Dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}


class _Odd(ValueError):
    """A parser would accept the file, but no exporter writes such files."""


def names(model: bytes) -> Set[str]:
    """The names of the graph's nodes; incomplete if the file is damaged."""
    node_names: Set[str] = set()
    try:
        for graph in _bytes_of(memoryview(model), 7):
            node_names.update(_text(entry, 3) for entry in _bytes_of(graph, 1))
    except ValueError:
        pass
    return node_names


def node(model: bytes, index: int) -> Optional[Tuple[str, str]]:
    """(name, operator) of the graph's node `index`; None if it does not exist or the file is damaged."""
    try:
        for graph in _bytes_of(memoryview(model), 7):
            for i, entry in enumerate(_bytes_of(graph, 1)):
                if i == index:
                    return _text(entry, 3), _text(entry, 4)
    except ValueError:
        pass
    return None


def opset(model: bytes) -> Optional[int]:
    """The version of the ONNX operators that the file uses; None if missing, or if the file is damaged."""
    try:
        for entry in _bytes_of(memoryview(model), 8):
            if _text(entry, 1) in ("", "ai.onnx"):
                return next((value for field, value in _fields(entry) if field == 2 and isinstance(value, int)), None)
    except ValueError:
        pass
    return None


def outside(model: bytes) -> Optional[str]:
    """The reason why the model is not completely inside its file; None if it is.

    Example: "the tensor gain is stored in another file (weights.bin)". A file that is too complex to check is also
    refused. In a damaged file, everything readable is searched.

    Args:
        model: Bytes of the file.
    """
    if bytes(model[4:8]) == b"ORTM":  # ONNX Runtime recognises its own format by these bytes
        return "the file is in ONNX Runtime's own format, not ONNX"
    left, count = [("model", memoryview(model))], 0
    while left:
        kind, message = left.pop()
        inner = _WITHIN[kind]
        try:
            for field, value in _fields(message):
                count += 1
                if count > _MOST_FIELDS:
                    return f"the file is too complex to check (more than {_MOST_FIELDS:,} fields)"
                if kind == "tensor" and _is_outside(field, value):
                    where = _shown(_location(message))
                    return f"the tensor {_name(message, 8)} is stored in another file ({where})"
                if kind == "node" and field == 4 and not isinstance(value, int) and bytes(value) == b"EPContext":
                    return f"the node {_name(message, 3)} refers to a built engine (EPContext)"
                if field in inner and not isinstance(value, int):
                    left.append((inner[field], value))
        except _Odd as odd:
            return str(odd)
        except ValueError:  # damaged here, so parsers refuse the whole file
            continue
    return None


def refuse_outside(model: bytes, what: str) -> None:
    """Refuse a file whose model is not completely inside it, before any runtime reads it.

    Args:
        model: Bytes of the file.
        what: Start of the error message.

    Raises:
        InputError: A part of the model is outside the file.
    """
    why = outside(model)
    if why is not None:
        raise InputError(f"{what}: {why}; export the model as one ONNX file, with its weights inside")


def _is_outside(field: int, value: Union[int, memoryview]) -> bool:
    """Whether this field of a TensorProto (external_data or data_location) states that the data is in another file."""
    return field == 13 or (field == 14 and isinstance(value, int) and value & 0xFFFFFFFF != 0)


def _location(tensor: memoryview) -> str:
    """The last location in a TensorProto; parsers use the last one."""
    location = ""
    try:
        for entry in _bytes_of(tensor, 13):
            location = _text(entry, 2) if _text(entry, 1) == "location" else location
    except ValueError:
        pass
    return location


def _name(message: memoryview, number: int) -> str:
    try:
        return _shown(_text(message, number))
    except ValueError:
        return _shown("")


def _shown(text: str) -> str:
    return printable(" ".join(text.split())[:100]) or "without a name"


def _text(message: memoryview, number: int) -> str:
    return next((bytes(value).decode("utf-8", "replace") for value in _bytes_of(message, number)), "")


def _bytes_of(message: memoryview, number: int) -> Iterator[memoryview]:
    return (value for field, value in _fields(message) if field == number and not isinstance(value, int))


def _fields(message: memoryview) -> Iterator[Tuple[int, Union[int, memoryview]]]:
    """(field number, value) of a message, without groups. Raises ValueError if it is not a message.

    ONNX messages have no groups. Like a parser, this skips a group and reads on after it.
    """
    at, skipped = 0, 0
    groups: List[int] = []
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = (key & 0xFFFFFFFF) >> 3, key & 7  # a tag has 32 bits; parsers ignore the rest
        value: Union[int, memoryview] = 0
        if kind == _GROUP:
            groups.append(number)
        elif kind == _END:
            if not groups or groups.pop() != number:
                raise ValueError("end of a group without a start")
            continue
        elif kind == _VARINT:
            value, at = _varint(message, at)
        elif kind in (_BYTES, _FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
            if kind == _BYTES:
                size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("truncated")
            value, at = message[at : at + size], at + size
        else:
            raise ValueError(f"wire type {kind}")
        if not groups:
            yield number, value
            continue
        skipped += 1
        if skipped > _MOST_IN_GROUPS:
            raise _Odd(f"the file is too complex to check (more than {_MOST_IN_GROUPS:,} fields in groups)")
    if groups:
        raise ValueError("a group without an end")


def _varint(message: memoryview, at: int) -> Tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("truncated")
        value |= (message[at] & 127) << shift
        at += 1
        if message[at - 1] < 128:
            return value, at
    raise ValueError("a number without an end")
