"""The drone's half of edgeprune: verify a bundle, run it, measure it, report back.

The package imports no module by itself; import the module that you need, e.g. `from edgeprune_device.trust.bundle
import Bundle`.
"""

from __future__ import annotations

import os

# ONNX Runtime's wheels send telemetry since 1.29, unless this is set before the import (microsoft/onnxruntime pull
# request 27379). A drone must not send any. A value that the user set stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def version() -> str:
    """The installed version of this distribution, e.g. "0.1.0" ("unknown" when run from a folder, uninstalled)."""
    from importlib import metadata

    try:
        return metadata.version("edgeprune-device")
    except metadata.PackageNotFoundError:
        return "unknown"
