"""Tests of the explanation of a refusal, with the fake of each recorded release."""

import pytest
from edgeprune_device.engine import Request, library, refusal
from edgeprune_device.engine.build import build
from edgeprune_device.errors import GateError
from fakes import fake_tensorrt as fake
from fakes import models

ALL = (*fake.RELEASES, fake.RTX)


def refused(release, onnx, precision="fp32"):
    with pytest.raises(GateError) as caught:
        build(fake.module(release), Request(onnx, precision, name="model.onnx"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("release", ALL)
def test_refusal_names_node_layer_and_remedy(release):
    nodes = [
        models.node("Mul", ["images", "g"], "m", "/model.0/Mul"),
        models.node("NonMaxSuppression", ["m"], "output0", "/model.22/nms/nms.0/NonMaxSuppression"),
    ]
    onnx = models.model(nodes, [models.raw("g", models.np.ones(1, "float32"))], 17)
    message = refused(release, onnx)
    # TensorRT 8 gives only the node's number, so the name is read from the file.
    assert message.startswith(
        f"model.onnx: refused by {library.title(fake.module(release))}: NonMaxSuppression /model.22"
    )
    assert "(layer model.22.nms.0): No importer registered for op" in message
    assert message.endswith(
        "this TensorRT does not support the operator; export the model without it, or use a newer JetPack"
    )


def test_refusal_of_types_opset_or_damage_gives_the_remedy():
    new = models.detector("int8", opset=19)
    assert "opset too new for TensorRT 8 (found 19, expected at most 17); use JetPack 6.1 or later" in refused(
        "8.6.1", new, "int8"
    )
    wrong = models.model([models.node("Mul", ["images", "u"], "output0", "/model.3/Mul")], [uint8("u")], 17)
    message = refused("10.3.0", wrong, "fp16")
    assert "Mul /model.3/Mul (layer model.3): unsupported input type of UINT8" in message
    assert "or use another file of the bundle (precision=fp32)" in message
    for damaged in (b"", b"not onnx", models.detector()[:200]):
        message = refused("10.3.0", damaged)
        assert "Failed to parse ONNX model. Is it whole?; the file is damaged or not ONNX" in message


def uint8(name):
    return models.message((1, 1), (2, 2), (8, name), (9, b"\x01"))


def test_message_of_the_builder_becomes_a_remedy():
    advice = refusal.of_builder(["Error Code 1: Cuda Runtime (out of memory)"], "fp16")
    assert "close other programs" in advice and "workspace=256" in advice
    advice = refusal.of_builder(["Could not find any implementation for node X."], "int8")
    assert "workspace=2048" in advice and "precision=fp16" in advice
    assert refusal.of_builder([], "fp32") == "the builder gave no reason"
