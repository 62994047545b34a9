import numpy as np
import pytest
from edgeprune_device import output
from edgeprune_device.errors import InputError
from edgeprune_device.output import BEST, END2END, MAX_ROWS, RAW, checked, fits, shape_of


def test_shape_of_the_own_files_fits_the_stated_kind():
    assert shape_of(RAW, classes=80, anchors=8400) == (1, 84, 8400)
    assert shape_of(END2END, classes=80, anchors=8400) == (1, MAX_ROWS, 6)
    assert shape_of(END2END, classes=80, anchors=84) == (1, 84, 6)
    assert shape_of(BEST, classes=80, anchors=8400) == (1, 84, MAX_ROWS)
    for kind in (RAW, BEST, END2END):
        assert fits(shape_of(kind, 80, 8400), kind, 80)
    assert not fits((1, 84, 8400), END2END, 80) and not fits((1, 84, 8400), RAW, 79) and not fits((84, 6), END2END, 80)


def test_fitting_output_is_returned_unchanged():
    output = np.zeros((1, 84, 6))
    assert checked(output, RAW, 80) is output and checked(output, END2END, 2) is output
    with pytest.raises(
        InputError, match=r"for the kind raw \(found \(1, 84, 6\), expected \(1, 6, N\) for 2 classes\)"
    ):
        checked(output, RAW, 2)


def test_an_output_larger_than_any_detectors_is_refused_before_memory_is_taken_for_it():
    output.check_size((1, 84, 33_600), "x")
    output.check_size((1, "anchors", None), "x")
    for shape in ((1, 6, 20_000_000), (1, "anchors", 20_000_000, 6), (1 << 40, 1 << 40)):
        with pytest.raises(
            InputError, match=r"^x: an output is too large \(found shape \(.*expected at most 67,108,864"
        ):
            output.check_size(shape, "x")


@pytest.mark.parametrize("runtime", ["null", "ort"])
def test_a_model_of_twenty_million_anchors_is_refused_at_once(runtime):
    """ONNX by hand: an Expand of the input to (1, 6, 20 million)."""
    pytest.importorskip("onnxruntime")
    from edgeprune_device import runtimes

    settings = runtimes.RuntimeSettings(shapes=((1, 3, 64, 64), [(1, 6, 20_000_000)]))
    model = b""
    if runtime == "ort":
        onnx = pytest.importorskip("onnx")
        h = onnx.helper
        shape = h.make_tensor("shape", onnx.TensorProto.INT64, [3], [1, 6, 20_000_000])
        nodes = [h.make_node("ReduceMax", ["x"], ["m"], keepdims=0), h.make_node("Expand", ["m", "shape"], ["y"])]
        x = h.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 64, 64])
        y = h.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 6, 20_000_000])
        graph = h.make_graph(nodes, "g", [x], [y], [shape])
        model = h.make_model(graph, opset_imports=[h.make_opsetid("", 13)], ir_version=8).SerializeToString()
    with pytest.raises(InputError, match="an output is too large"):
        runtimes.open(model, runtime, settings)
