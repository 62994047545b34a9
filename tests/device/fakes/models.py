"""Tiny ONNX models written by hand as protobuf, because the device tests do not need the onnx package."""

import random

import numpy as np

SIZE = 64  # px
ANCHORS = 84
FLOAT, UINT8, INT8, INT32, INT64, HALF = 1, 2, 3, 6, 7, 10


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number, value):
    """One protobuf field: int as varint, bytes or str as length-delimited."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def message(*fields):
    return b"".join(field(number, value) for number, value in fields)


def unreadable(size, seed=0):
    """`size` bytes that no protobuf parser reads, and that do not compress.

    Other random bytes can begin a protobuf group and are then refused for that group, about once in a hundred runs.
    """
    return b"\xff" * 10 + random.Random(seed).getrandbits(8 * (size - 10)).to_bytes(size - 10, "little")


def value_info(name, shape, kind=FLOAT):
    dims = b"".join(field(1, message((1, d)) if d else b"") for d in shape)  # 0: a dimension that is not fixed
    return message((1, name), (2, message((1, message((1, kind), (2, dims))))))


def tensor(name, array):
    dims = b"".join(field(1, d) for d in array.shape)
    return dims + message((2, 1), (8, name), (9, array.astype("<f4").tobytes()))


def node(operator, reads, writes, name, *attributes):
    """A node with one output or a list of them; attributes are (name, integer) or (name, [integers])."""
    fields = [(1, tensor_name) for tensor_name in reads]
    fields += [(2, tensor_name) for tensor_name in ([writes] if isinstance(writes, str) else writes)]
    fields += [(3, name), (4, operator)]
    for key, value in attributes:
        many = isinstance(value, list)
        content = [(8, number) for number in value] if many else [(3, value)]
        fields.append((5, message((1, key), *content, (20, 7 if many else 2))))
    return message(*fields)


def raw(name, array):
    """An initializer of the array's own type."""
    kind = {"float32": FLOAT, "int8": INT8, "int64": INT64, "float16": HALF}[array.dtype.name]
    dims = b"".join(field(1, d) for d in array.shape)
    return dims + message((2, kind), (8, name), (9, array.tobytes()))


POOL, SCALE, TAIL = "/model.0/pool/ReduceMean", "/model.1/conv/Mul", "/model.22/dfl/Add"


def detector(precision="fp32", opset=None):
    """Bytes of a "detector" in the form of a bundle's file of that precision: mean -> [Q/DQ] -> scale -> bias.

    The FP16 files keep the mean and the bias in FP32, as real files keep overflowing layers and the tail.
    """
    half = "fp16" in precision
    kind = np.float16 if half else np.float32
    gain, bias = (np.linspace(a, b, 6 * ANCHORS).reshape(1, 6, ANCHORS) for a, b in ((0, 50), (3, -2)))
    at, nodes = "mean", [node("ReduceMean", ["images"], "mean", POOL, ("keepdims", 0))]
    tensors = [raw("gain", gain.astype(kind)), raw("bias", bias.astype(np.float32))]
    if half:
        nodes.append(node("Cast", [at], "half", "/cast", ("to", HALF)))
        at = "half"
    if "int8" in precision:
        tensors += [raw("s", np.array(1 / 127, kind)), raw("z", np.array(0, np.int8))]
        nodes.append(node("QuantizeLinear", [at, "s", "z"], "q", "/model.1/conv/Q"))
        nodes.append(node("DequantizeLinear", ["q", "s", "z"], "dq", "/model.1/conv/DQ"))
        at = "dq"
    nodes.append(node("Mul", [at, "gain"], "scaled", SCALE))
    at = "scaled"
    if half:
        nodes.append(node("Cast", [at], "whole", "/back", ("to", FLOAT)))
        at = "whole"
    nodes.append(node("Add", [at, "bias"], "output0", TAIL))
    return model(nodes, tensors, opset or (19 if precision == "int8-fp16" else 17))


#: Of `variant`: the number of anchors, and the number of the best ones. Its score i is i / MANY times the brightness.
MANY, BEST = 400, 300


def variant():
    """Bytes of a "detector" in the form of a device variant, of 2 classes: brighter images have more detections."""
    gain, bias = np.zeros((2, 1, 6, MANY), np.float32)
    gain[0, 4] = np.random.default_rng(0).permutation(MANY) / np.float32(MANY)
    bias[0, 0], bias[0, 1], bias[0, 2:4] = np.arange(MANY) % 20 * 3, np.arange(MANY) // 20 * 3, 2
    nodes = [
        node("Cast", ["images"], "float", "/device/float", ("to", FLOAT)),
        node("Div", ["float", "levels"], "image", "/device/image"),
        node("ReduceMean", ["image"], "mean", POOL, ("keepdims", 0)),
        node("Mul", ["mean", "gain"], "scaled", SCALE),
        node("Add", ["scaled", "bias"], "raw", TAIL),
        node("Slice", ["raw", "begin", "end", "axis"], "scores", "/device/scores"),
        node("ReduceMax", ["scores"], "highest", "/device/highest", ("axes", [1]), ("keepdims", 0)),
        node("TopK", ["highest", "count"], ["top", "places"], "/device/top", ("axis", 1)),
        node("Reshape", ["places", "count"], "order", "/device/order"),
        node("Gather", ["raw", "order"], "best", "/device/best", ("axis", 2)),
        node("Cast", ["places"], "anchors", "/device/anchors", ("to", INT32)),
    ]
    whole = {"begin": 4, "end": 6, "axis": 1, "count": BEST}
    tensors = [raw("gain", gain), raw("bias", bias), raw("levels", np.array(255, np.float32))]
    tensors += [raw(name, np.array([value])) for name, value in whole.items()]
    outputs = (("best", (1, 6, BEST)), ("anchors", (1, BEST), INT32), ("raw", (1, 6, MANY)))
    return model(nodes, tensors, 17, outputs, size=(1, SIZE, SIZE, 3), pixels=UINT8)


def model(nodes, tensors, opset, outputs=(("output0", (1, 6, ANCHORS)),), size=(1, 3, SIZE, SIZE), pixels=FLOAT):
    """Bytes of a model with these nodes and one image as its input."""
    graph = b"".join(field(1, entry) for entry in nodes) + message((2, "tiny"))
    graph += b"".join(field(5, entry) for entry in tensors) + message((11, value_info("images", size, pixels)))
    graph += b"".join(field(12, value_info(*output)) for output in outputs)
    return message((1, 9), (7, graph), (8, message((1, ""), (2, opset))))


def endless(above=0.0):
    """Bytes of a detector that computes for ever on an image whose mean brightness is above `above`."""

    def scalar(name, kind):
        return message((1, name), (2, message((1, message((1, kind), (2, b""))))))

    body = message(
        (1, node("Identity", ["goes_on"], "still", "/loop/still")),
        (1, node("Identity", ["value"], "same", "/loop/same")),
        (2, "body"),
        *((11, scalar(name, kind)) for name, kind in (("number", 7), ("goes_on", 9), ("value", FLOAT))),
        *((12, scalar(name, kind)) for name, kind in (("still", 9), ("same", FLOAT))),
    )
    loop = node("Loop", ["", "bright", "mean"], "kept", "/loop") + field(5, message((1, "body"), (6, body), (20, 5)))
    nodes = [
        node("ReduceMean", ["images"], "mean", "/mean", ("keepdims", 0)),
        node("Greater", ["mean", "above"], "bright", "/bright"),
        loop,
        node("Mul", ["kept", "gain"], "output0", "/gain"),
    ]
    tensors = [raw("above", np.array(above, np.float32)), raw("gain", np.zeros((1, 6, ANCHORS), np.float32))]
    return model(nodes, tensors, 13)
