"""The versions of what a host's figures depend on."""

from __future__ import annotations

from importlib import metadata

_PACKAGES = ("edgeprune", "torch", "ultralytics", "onnx", "onnxruntime", "onnxsim", "tensorrt-rtx-cu13")


def edgeprune() -> str:
    """This distribution's version."""
    return metadata.version("edgeprune")


def of_packages() -> dict[str, str | None]:
    """{package: version, None if not installed}."""
    return {name: _version(name) for name in _PACKAGES}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
