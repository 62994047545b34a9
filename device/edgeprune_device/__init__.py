"""The drone's part of edgeprune: verify a bundle, run it, measure it, report back.

The package imports no module by itself. Import the modules that you need, e.g. `from edgeprune_device.trust.bundle
import Bundle`.
"""

from __future__ import annotations

import os

# ONNX Runtime's wheels send telemetry since 1.29 unless this is set before the import (microsoft/onnxruntime pull
# request 27379). A drone must not send any. A value set by the user is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def version() -> str:
    """The installed version of this distribution, e.g. "0.1.0" ("unknown" if it is not installed)."""
    from importlib import metadata

    try:
        return metadata.version("edgeprune-device")
    except metadata.PackageNotFoundError:
        return "unknown"
