import pytest
from edgeprune_device.installation import measure, restart
from edgeprune_device.releases import Releases
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision.evaluation import EvaluationSet

from .installing import MEASURED, Watched


@pytest.fixture
def releases(tmp_path):
    return Releases(tmp_path / "root")


@pytest.fixture
def make(tmp_path, manifest, tiny_onnx, labelled_pictures):
    """make(counter) -> the path of a bundle with this counter; each with the same content."""

    def make(counter, onnx=tiny_onnx, key=None, name=None):
        payloads = {"model.fp32.onnx": onnx, "evaluation.zip": EvaluationSet.pack(labelled_pictures)}
        path = tmp_path / f"{name or counter}.epb"
        Bundle.write(path, {**manifest, "counter": counter}, payloads, key or keys.load_or_create())
        return path

    return make


@pytest.fixture
def unmeasured(monkeypatch):
    """Skip the benchmark, which takes seconds in a separate process, in tests of the steps around it."""
    monkeypatch.setattr(measure, "measure", lambda *_: MEASURED)


@pytest.fixture
def service(monkeypatch):
    watched = Watched()
    monkeypatch.setattr(restart, "find", lambda *_: watched)
    return watched
