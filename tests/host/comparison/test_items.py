"""items: the files that a comparison accepts."""

import re

import onnx
import pytest
from edgeprune_device.errors import InputError
from onnx import TensorProto, helper

from edgeprune.comparison.items import open_item


@pytest.mark.parametrize(
    "shape, shown",
    [
        (["n", 3, "h", "w"], "(dynamic, 3, dynamic, dynamic)"),
        ([1, 3, 64, "w"], "(1, 3, 64, dynamic)"),
        ([2, 3, 64, 64], "(2, 3, 64, 64)"),
        ([1, 1, 64, 64], "(1, 1, 64, 64)"),
    ],
)
def test_onnx_file_with_an_unsupported_input_shape_is_refused(tmp_path, shape, shown):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("images", "output0")]
    graph = helper.make_graph([helper.make_node("Identity", ["images"], ["output0"])], "g", *[[v] for v in values])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(
        InputError, match=re.escape(f"model.onnx: unsupported input shape (found {shown}, expected (1,")
    ):
        open_item(tmp_path / "model.onnx", None)
