import pytest

from .providers import PROVIDERS


@pytest.fixture
def ort():
    return pytest.importorskip("onnxruntime")


@pytest.fixture
def engines(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_ENGINES", str(tmp_path / "engines"))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    return tmp_path / "engines"


@pytest.fixture
def front(monkeypatch, engines):
    """A FAKE front of onnxruntime that reports GPU providers. `.asked`: the arguments of the sessions; `.loads`: the
    providers whose libraries load."""

    onnxruntime = pytest.importorskip("onnxruntime")
    from edgeprune_device.runtimes import ort

    class Front:
        asked, loads = [], [*PROVIDERS.values()]

    class FakeSession:
        def __init__(self, model, options, providers, **more):
            Front.asked.append((providers, more))
            self._real = real(model, options, providers=[ort.CPU])
            names = [entry if isinstance(entry, str) else entry[0] for entry in providers]
            self._providers = [name for name in names if name in (*Front.loads, ort.CPU)]

        def get_providers(self):
            return self._providers

        def get_inputs(self):
            return self._real.get_inputs()

        def get_outputs(self):
            return self._real.get_outputs()

        def run(self, names, feed):
            return self._real.run(names, feed)

    real = onnxruntime.InferenceSession
    Front.asked = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*PROVIDERS.values(), ort.CPU])
    return Front
