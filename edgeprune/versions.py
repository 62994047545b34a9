"""The versions of the packages that the host's figures depend on."""

from __future__ import annotations

from importlib import metadata

_PACKAGES = ("edgeprune", "torch", "ultralytics", "onnx", "onnxruntime", "onnxsim", "tensorrt-rtx-cu13")


def edgeprune() -> str:
    """The version of the installed edgeprune distribution."""
    return metadata.version("edgeprune")


def of_packages() -> dict[str, str | None]:
    """The versions as `{package: version}`; None for a package that is not installed."""
    return {name: _version(name) for name in _PACKAGES}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
