"""The parts of an ONNX file that an error message needs: its opset and its nodes' names, read without the onnx package.

TensorRT 8's parser reports only the number of the node that it refused. An ONNX file is a protobuf message:
ModelProto.graph is field 7 and opset_import 8, GraphProto.node 1, NodeProto.name 3 and op_type 4.
"""

from __future__ import annotations

from typing import Iterator, Optional, Set, Tuple, Union

__all__ = ["names", "node", "opset"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def names(model: bytes) -> Set[str]:
    """The names of the graph's nodes; fewer where the file is damaged."""
    found: Set[str] = set()
    try:
        for graph in _bytes_of(memoryview(model), 7):
            found.update(_text(entry, 3) for entry in _bytes_of(graph, 1))
    except ValueError:
        pass
    return found


def node(model: bytes, index: int) -> Optional[Tuple[str, str]]:
    """(name, operator) of the graph's node `index`; None where there is none, or the file is damaged."""
    try:
        for graph in _bytes_of(memoryview(model), 7):
            for i, entry in enumerate(_bytes_of(graph, 1)):
                if i == index:
                    return _text(entry, 3), _text(entry, 4)
    except ValueError:
        pass
    return None


def opset(model: bytes) -> Optional[int]:
    """The version of ONNX's own operators that the file uses; None where it has none, or is damaged."""
    try:
        for entry in _bytes_of(memoryview(model), 8):
            if _text(entry, 1) in ("", "ai.onnx"):
                return next((value for field, value in _fields(entry) if field == 2 and isinstance(value, int)), None)
    except ValueError:
        pass
    return None


def _text(message: memoryview, number: int) -> str:
    return next((bytes(value).decode("utf-8", "replace") for value in _bytes_of(message, number)), "")


def _bytes_of(message: memoryview, number: int) -> Iterator[memoryview]:
    return (value for field, value in _fields(message) if field == number and not isinstance(value, int))


def _fields(message: memoryview) -> Iterator[Tuple[int, Union[int, memoryview]]]:
    """(field number, value) of a message. ValueError where it ends too early or is no message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > len(message):
            raise ValueError("truncated")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> Tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("truncated")
        value |= (message[at] & 127) << shift
        at += 1
        if message[at - 1] < 128:
            return value, at
    raise ValueError("a number without end")
