"""versions: the versions of installed packages, and null for missing ones."""

from importlib import metadata

from edgeprune import versions


def test_a_missing_package_has_no_version(monkeypatch):
    monkeypatch.setattr(versions, "_PACKAGES", ("numpy", "edgeprune-of-nowhere"))
    assert versions.of_packages() == {"numpy": metadata.version("numpy"), "edgeprune-of-nowhere": None}


def test_the_packages_that_figures_depend_on_are_listed():
    packages = versions.of_packages()
    assert packages["edgeprune"] == versions.edgeprune()
    assert {"torch", "ultralytics", "onnx", "onnxruntime"} <= set(packages)
