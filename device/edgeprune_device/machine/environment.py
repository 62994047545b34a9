"""The machine on which a figure was measured.

Reading and parsing are separate: the parsers are pure functions of text.
"""

from __future__ import annotations

import importlib
import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from edgeprune_device.printable import printable
from edgeprune_device.probes import memory

__all__ = ["Environment", "parse_cpuinfo", "parse_key_values", "parse_meminfo"]

# The CPU features that affect the speed and the correctness of INT8.
_FEATURES = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


@dataclass(frozen=True)
class Environment:
    """A machine, e.g. Environment(cpu="Intel Xeon", cores=2, …, load_average_1min=0.1). None: not known.

    Attributes:
        cpu: Name of the CPU.
        cpu_features: The CPU features that affect the speed and the correctness of INT8, sorted.
        cores: Cores that this process may use.
        memory_bytes: Installed memory.
        machine: Architecture, e.g. "aarch64".
        os: Name of the operating system.
        kernel: Release of the kernel.
        python: Version of Python.
        packages: {name: version, None if not installed}.
        governor: Clock governor of the first core.
        load_average_1min: Load average when read, that is before the measurement.
    """

    cpu: Optional[str]
    cpu_features: Tuple[str, ...]
    cores: int
    memory_bytes: Optional[int]
    machine: str
    os: str
    kernel: str
    python: str
    packages: Dict[str, Optional[str]]
    governor: Optional[str]
    load_average_1min: Optional[float]

    @classmethod
    def read(cls) -> Environment:
        """Read this machine now. Never raises: an unreadable field is None or empty."""
        cpu, features = parse_cpuinfo(_text("/proc/cpuinfo"))
        release = parse_key_values(_text("/etc/os-release"))
        device_tree = _text("/proc/device-tree/model").strip("\0 \n")
        return cls(
            cpu=_shown(cpu or device_tree or platform.processor()) or None,
            cpu_features=features,
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            memory_bytes=parse_meminfo(_text("/proc/meminfo")),
            machine=platform.machine(),
            os=_shown(release.get("PRETTY_NAME") or platform.system()),
            kernel=platform.release(),
            python=platform.python_version(),
            packages={**{name: _version(module) for name, module in _PACKAGES.items()}, "openvino": _openvino()},
            governor=_shown(_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()) or None,
            load_average_1min=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        )

    @property
    def saturates(self) -> bool:
        """Whether INT8 needs 7-bit weights here.

        Without VNNI, an x86 CPU adds two products of u8 and s8 in 16 bits, which saturates with 8-bit weights.
        """
        vnni = {"avx512_vnni", "avx_vnni", "amx_int8"} & set(self.cpu_features)
        return self.machine in ("x86_64", "AMD64") and not vnni

    @classmethod
    def from_json(cls, data: Dict[str, Any]) -> Environment:
        """Read the object that `to_json` wrote. The caller has checked the schema (`BenchReport.from_json`)."""
        return cls(**{**data, "cpu_features": tuple(data["cpu_features"])})

    def to_json(self) -> Dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "cpu_features": list(self.cpu_features)}

    def warnings(self) -> List[str]:
        """Causes of unreliable timings on this machine, one line each."""
        lines = []
        if self.governor not in (None, "performance"):
            lines.append(
                f"the CPU clock governor is {self.governor} (expected performance), so timings depend on the clock"
            )
        return lines


_PACKAGES = {"numpy": "numpy", "pillow": "PIL", "opencv": "cv2", "onnxruntime": "onnxruntime", "tensorrt": "tensorrt"}


def parse_cpuinfo(text: str) -> Tuple[Optional[str], Tuple[str, ...]]:
    """/proc/cpuinfo -> (CPU model or None, the features that affect INT8, sorted)."""
    fields: Dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return fields.get("model name") or fields.get("Model") or None, tuple(sorted(set(flags) & set(_FEATURES)))


def parse_meminfo(text: str) -> Optional[int]:
    """/proc/meminfo -> MemTotal in bytes; None if it is missing."""
    return memory.parse_meminfo(text)["total"]


def parse_key_values(text: str) -> Dict[str, str]:
    """/etc/os-release -> {key: value without quotes}."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}


def _shown(text: str) -> str:
    return printable(text)[:100]  # the report's limit


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _version(module: str) -> Optional[str]:
    try:
        return _shown(str(importlib.import_module(module).__version__))
    except Exception:  # a broken installation must not prevent a description
        return None


def _openvino() -> Optional[str]:
    """OpenVINO's version, from the package metadata: an import would send telemetry (see `runtimes/openvino.py`)."""
    try:
        return _shown(metadata.version("openvino"))
    except metadata.PackageNotFoundError:
        return None
