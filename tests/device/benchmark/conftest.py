import pytest
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision.evaluation import EvaluationSet


@pytest.fixture
def rebuilt(tmp_path, manifest, tiny_onnx, labelled_pictures):
    """make(payloads, **change): a bundle with a changed manifest."""

    def make(payloads=None, **change):
        parts = {"model.fp32.onnx": tiny_onnx, "evaluation.zip": EvaluationSet.pack(labelled_pictures)}
        parts.update(payloads or {})
        return Bundle.write(tmp_path / "other.epb", {**manifest, **change}, parts, keys.load_or_create())

    return make
