"""versions: those of what is installed, and null where nothing is."""

from importlib import metadata

from edgeprune import versions


def test_what_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(versions, "_PACKAGES", ("numpy", "edgeprune-of-nowhere"))
    assert versions.of_packages() == {"numpy": metadata.version("numpy"), "edgeprune-of-nowhere": None}


def test_it_is_told_what_figures_depend_on():
    found = versions.of_packages()
    assert found["edgeprune"] == versions.edgeprune() and {"torch", "ultralytics", "onnx", "onnxruntime"} <= set(found)
