# This Python may be 3.6.
# ruff: noqa: UP045
"""Prints the version and the packages of this Python, and the facts of its machine, as one line of JSON."""

import json
import os
import platform
import struct
import sys
from typing import Optional

MODULES = ("numpy", "PIL", "nacl.bindings", "onnxruntime", "cv2", "tensorrt", "cuda", "pycuda")


def _version(name: str) -> Optional[str]:
    try:
        __import__(name)
        top = sys.modules[name.split(".")[0]]
        return str(getattr(top, "__version__", "0"))
    except Exception:  # a broken package counts as missing
        return None


def _text(path: str) -> Optional[str]:
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.read(300).strip()
    except OSError:
        return None


def _libc() -> Optional[str]:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, OSError, ValueError):
        return None


def _venv() -> bool:
    try:
        import venv

        return venv is not None
    except ImportError:
        return False


home = os.path.expanduser("~")
config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
settings = os.environ.get("EDGEPRUNE_HOME") or os.path.join(config, "edgeprune")
disk = os.statvfs(home)
print(
    json.dumps(
        {
            "python": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
            "bits": struct.calcsize("P") * 8,
            "machine": platform.machine(),
            "libc": _libc(),
            "venv": _venv(),
            "packages": {name.split(".")[0]: _version(name) for name in MODULES},
            "home": home,
            "free_bytes": disk.f_bavail * disk.f_frsize,
            "l4t": _text("/etc/nv_tegra_release"),
            "report_key": _text(os.path.join(settings, "keys", "report.pub")),
        }
    )
)
