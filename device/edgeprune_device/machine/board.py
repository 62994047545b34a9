"""This board's device tree and its L4T release. On a machine with neither, every field is None."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from edgeprune_device.probes import sysfs

__all__ = ["Board", "jetpack", "parse_l4t", "read"]

# The JetPack of each L4T release for which it is certain …
_EXACT = {
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "38.2.0": "7.0",
    "38.4.0": "7.1",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
}
# … otherwise the range given by the first two numbers.
_RANGE = {
    "35.2": "5.1",
    "35.3": "5.1.x",
    "35.4": "5.1.x",
    "35.5": "5.1.x",
    "35.6": "5.1.x",
    "36.4": "6.1-6.2.2",
    "36.5": "6.1-6.2.2",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2": "7.2.x",
}


@dataclass(frozen=True)
class Board:
    """A board, e.g. Board("NVIDIA Jetson Orin NX …", ("nvidia,p3768-0000+p3767-0000", …), "1422…", "36.4.3", "6.2").

    Attributes:
        model: Model name of the device tree.
        compatible: Compatible names of the device tree, at most 20.
        serial: Serial number of the device tree.
        l4t: L4T release.
        jetpack: JetPack release; a range, e.g. "6.1-6.2.2", if the L4T release does not determine it.
    """

    model: Optional[str] = None
    compatible: Tuple[str, ...] = ()
    serial: Optional[str] = None
    l4t: Optional[str] = None
    jetpack: Optional[str] = None

    @classmethod
    def from_json(cls, data: Dict[str, Any]) -> Board:
        """Read the object that `to_json` wrote. The caller has checked the schema (`BenchReport.from_json`)."""
        return cls(**{**data, "compatible": tuple(data["compatible"])})

    def to_json(self) -> Dict[str, Any]:
        """A JSON object that fits `schema/report.json#/$defs/board`."""
        return {**asdict(self), "compatible": list(self.compatible)}


def read(root: Optional[Path] = None) -> Board:
    """Read this board. Never raises: an unreadable field is None.

    Args:
        root: Root of the file system, by default `probes.sysroot()`.
    """
    root = sysfs.sysroot() if root is None else root
    l4t = parse_l4t(sysfs.text(root / "etc/nv_tegra_release") or "")
    compatible = (_property(root, "compatible") or "").split("\0")
    return Board(
        model=_shown(_property(root, "model")),
        compatible=tuple(name for name in map(_shown, compatible[:20]) if name),
        serial=_shown(_property(root, "serial-number")),
        l4t=l4t,
        jetpack=None if l4t is None else jetpack(l4t),
    )


def parse_l4t(content: str) -> Optional[str]:
    """Parse /etc/nv_tegra_release: "# R36 (release), REVISION: 4.3, …" -> "36.4.3"; None for other content."""
    match = re.match(r"# R([0-9]{1,3}) \(release\), REVISION: ([0-9]{1,3}(?:\.[0-9]{1,3}){1,2})(?![0-9.])", content)
    return f"{match.group(1)}.{match.group(2)}" if match else None


def jetpack(l4t: str) -> Optional[str]:
    """The JetPack of an L4T release, e.g. "36.4.3" -> "6.2"; None if it is not known here."""
    return _EXACT.get(l4t) or _RANGE.get(".".join(l4t.split(".")[:2]))


def _property(root: Path, name: str) -> Optional[str]:
    # /proc/device-tree is a link to the first one. A container may have only one of them, and tests can create only the
    # first.
    for base in ("sys/firmware/devicetree/base", "proc/device-tree"):
        text = sysfs.text(root / base / name)
        if text:
            return text
    return None


def _shown(value: Optional[str]) -> Optional[str]:
    """The text if it is one short printable line, else None; the device tree may hold any text."""
    value = (value or "").strip()
    return value if value and len(value) <= 200 and value.isprintable() else None
