"""What a refusal of each recorded release becomes, with its fake."""

import pytest
from edgeprune_device.engine import library, refusal
from edgeprune_device.engine.build import build
from edgeprune_device.errors import GateError
from fakes import fake_tensorrt as fake
from fakes import models

ALL = (*fake.RELEASES, fake.RTX)


def refused(release, onnx, precision="fp32"):
    with pytest.raises(GateError) as caught:
        build(fake.module(release), onnx, precision, name="model.onnx")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("release", ALL)
def test_a_refusal_names_the_node_the_layer_and_what_to_do(release):
    nodes = [
        models.node("Mul", ["images", "g"], "m", "/model.0/Mul"),
        models.node("NonMaxSuppression", ["m"], "output0", "/model.22/nms/nms.0/NonMaxSuppression"),
    ]
    onnx = models.model(nodes, [models.raw("g", models.np.ones(1, "float32"))], 17)
    message = refused(release, onnx)
    # TensorRT 8 tells only the node's number: the name is read from the file.
    assert message.startswith(
        f"model.onnx: {library.title(fake.module(release))} refuses it: NonMaxSuppression /model.22"
    )
    assert "(layer model.22.nms.0): No importer registered for op" in message
    assert message.endswith("this TensorRT has no such operator: export the model without it, or use a newer JetPack")


def test_a_refusal_of_types_opset_and_damage_says_what_to_do():
    new = models.detector("int8", opset=19)
    assert "opset 19 is newer than TensorRT 8 reads (17): use JetPack 6.1 or later" in refused("8.6.1", new, "int8")
    wrong = models.model([models.node("Mul", ["images", "u"], "output0", "/model.3/Mul")], [uint8("u")], 17)
    message = refused("10.3.0", wrong, "fp16")
    assert "Mul /model.3/Mul (layer model.3): unsupported input type of UINT8" in message
    assert "or another file of the bundle (--precision fp32)" in message
    for damaged in (b"", b"not onnx", models.detector()[:200]):
        message = refused("10.3.0", damaged)
        assert "Failed to parse ONNX model. Is it whole?; the file is damaged or no ONNX" in message


def uint8(name):
    return models.message((1, 1), (2, 2), (8, name), (9, b"\x01"))


def test_what_the_builder_says_becomes_advice():
    advice = refusal.of_builder(["Error Code 1: Cuda Runtime (out of memory)"], "fp16")
    assert "close what else runs" in advice and "--workspace 256" in advice
    advice = refusal.of_builder(["Could not find any implementation for node X."], "int8")
    assert "--workspace 2048" in advice and "--precision fp16" in advice
    assert refusal.of_builder([], "fp32") == "the builder gave no reason"
