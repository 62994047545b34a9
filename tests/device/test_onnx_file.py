import numpy as np
import pytest
from edgeprune_device import onnx_file
from edgeprune_device.errors import InputError
from fakes import models
from fakes.models import field, message, varint


def test_damaged_file_has_no_node_and_no_opset():
    onnx = models.detector("int8")
    assert onnx_file.opset(onnx) == 17 and onnx_file.node(onnx, 1) == ("/model.1/conv/Q", "QuantizeLinear")
    assert onnx_file.node(onnx, 9) is None and onnx_file.node(onnx, -1) is None
    for data in (
        b"",
        b"\xff" * 20,
        b"\x3a\xff\xff\xff\xff\x0f",
        *(np.random.default_rng(seed).bytes(64) for seed in range(50)),
    ):
        assert onnx_file.opset(data) is None or isinstance(onnx_file.opset(data), int)
    assert onnx_file.node(b"\x3a\xff\xff\xff\xff\x0f", 0) is None and onnx_file.opset(b"\xff" * 20) is None


# --- references to other files --------------------------------------------------------------------------------------
_DETECTOR = models.detector()
_ELSEWHERE = message((1, 4), (2, 1), (8, "w"), (13, message((1, "location"), (2, "../secret"))), (14, 1))
_ENGINE = message((3, "/engine"), (4, "EPContext"), (7, "com.microsoft"))


def _graph(number, value):
    return message((7, field(number, value)))


def _attribute(*fields):
    return _graph(1, message((4, "Constant"), (5, message((1, "value"), *fields))))


#: {where: bytes that are appended to a complete model and that a parser reads as part of it}
_TENSORS = {
    "an initializer": _graph(5, _ELSEWHERE),
    "a sparse initializer's values": _graph(15, field(1, _ELSEWHERE)),
    "a sparse initializer's indices": _graph(15, field(2, _ELSEWHERE)),
    "an attribute": _attribute((5, _ELSEWHERE)),
    "a list in an attribute": _attribute((10, _ELSEWHERE)),
    "a sparse attribute": _attribute((22, field(1, _ELSEWHERE))),
    "a list of sparse attributes": _attribute((23, field(1, _ELSEWHERE))),
    "the body of a loop": _attribute((6, field(5, _ELSEWHERE))),
    "the bodies of a list": _attribute((11, field(5, _ELSEWHERE))),
    "a body in a body": _attribute((6, field(1, message((5, field(6, field(5, _ELSEWHERE))))))),
    "a function": message((25, field(7, message((5, field(5, _ELSEWHERE)))))),
    "a function's default": message((25, field(11, field(5, _ELSEWHERE)))),
    "the training": message((20, field(2, field(5, _ELSEWHERE)))),
    "behind a group": varint(99 << 3 | 3) + field(7, "x") + varint(99 << 3 | 4) + _graph(5, _ELSEWHERE),
    "a tag of more than 32 bits": varint((7 << 3 | 2) + (1 << 32)) + _graph(5, _ELSEWHERE)[1:],
    "before bytes that are no message": _graph(5, _ELSEWHERE) + b"\0\7\7\7",
}


@pytest.mark.parametrize("where", _TENSORS)
def test_tensor_in_another_file_is_found_in_any_position(where):
    why = onnx_file.outside(_DETECTOR + _TENSORS[where])
    assert why == "the tensor w is stored in another file (../secret)"
    with pytest.raises(
        InputError, match=r"^m.onnx: the tensor w is.*\(\.\./secret\); export the model as one ONNX file"
    ):
        onnx_file.refuse_outside(_DETECTOR + _TENSORS[where], "m.onnx")


@pytest.mark.parametrize(
    "tensor",
    [
        message((8, "w"), (14, 1)),
        message((8, "w"), (14, 1 + (1 << 32))),  # a parser keeps 32 bits of an enum
        message((14, 0), (8, "w"), (14, 1)),  # the last one counts
        message((8, "w"), (13, message((1, "location"), (2, "*/_ORT_MEM_ADDR_/*")))),
    ],
)
def test_each_form_of_external_data_is_found(tensor):
    assert "the tensor w is stored in another file" in onnx_file.outside(_DETECTOR + _graph(5, tensor))


@pytest.mark.parametrize(
    "part",
    [
        _graph(1, _ENGINE),
        _graph(1, message((4, "Relu")) + _ENGINE),
        _graph(1, _ENGINE + message((4, "Relu"))),
        _attribute((6, field(1, _ENGINE))),
        message((25, field(7, _ENGINE))),
    ],
)
def test_node_with_an_engine_is_found(part):
    assert onnx_file.outside(_DETECTOR + part) == "the node /engine refers to a built engine (EPContext)"


def test_file_too_complex_to_check_is_refused(monkeypatch):
    # The offset of the flat buffer's root also makes this a message with one field, which hides the rest.
    assert onnx_file.outside(b"\x0a\x7f\0\0ORTM" + bytes(200)) == "the file is in ONNX Runtime's own format, not ONNX"
    group = varint(99 << 3 | 3) + field(7, 1) * 1001 + varint(99 << 3 | 4)
    assert (
        onnx_file.outside(_DETECTOR + group + _TENSORS["an initializer"])
        == "the file is too complex to check (more than 1,000 fields in groups)"
    )
    monkeypatch.setattr(onnx_file, "_MOST_FIELDS", 100)
    assert (
        onnx_file.outside(_DETECTOR + field(2, "x") * 100) == "the file is too complex to check (more than 100 fields)"
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-fp16"])
def test_model_completely_inside_its_file_is_accepted(precision, tiny_onnx):
    assert onnx_file.outside(models.detector(precision)) is None
    assert onnx_file.outside(tiny_onnx) is None


def test_damaged_files_and_random_bytes_are_left_to_the_parser():
    assert all(onnx_file.outside(_DETECTOR[:end]) is None for end in range(0, len(_DETECTOR), 97))
    assert all(onnx_file.outside(np.random.default_rng(seed).bytes(200)) is None for seed in range(200))
    hidden = np.frombuffer(_ELSEWHERE, np.uint8)  # the same bytes as content of weights are harmless
    assert onnx_file.outside(models.model([], [models.raw("w", hidden.astype(np.int8))], 17)) is None
