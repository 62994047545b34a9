import pytest
from edgeprune_device.engine.layers import layer_of_node


@pytest.mark.parametrize(
    "node, layer",
    [
        ("/model.22/cv2.0/cv2.0.1/conv/Conv", "model.22.cv2.0.1.conv"),  # PyTorch repeats the path of a Sequential
        ("/model.2/m.0/cv1/conv/Conv", "model.2.m.0.cv1.conv"),
        ("/model.0/Mul", "model.0"),
        ("Conv_12", "Conv_12"),  # a name without a path
        ("", ""),
    ],
)
def test_name_of_an_operator_gives_its_layer(node, layer):
    assert layer_of_node(node) == layer
