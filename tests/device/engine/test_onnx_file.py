import os

from edgeprune_device.engine import onnx_file
from fakes import models


def test_a_damaged_file_has_no_node_and_no_opset():
    onnx = models.detector("int8")
    assert onnx_file.opset(onnx) == 17 and onnx_file.node(onnx, 1) == ("/model.1/conv/Q", "QuantizeLinear")
    assert onnx_file.node(onnx, 9) is None and onnx_file.node(onnx, -1) is None
    for data in (b"", b"\xff" * 20, b"\x3a\xff\xff\xff\xff\x0f", os.urandom(64)):
        assert onnx_file.opset(data) is None or isinstance(onnx_file.opset(data), int)
    assert onnx_file.node(b"\x3a\xff\xff\xff\xff\x0f", 0) is None and onnx_file.opset(b"\xff" * 20) is None
