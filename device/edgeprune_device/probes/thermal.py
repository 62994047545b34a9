"""The temperatures of all thermal zones, on a Jetson and on any Linux machine."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import List, Optional

from edgeprune_device.probes import sysfs
from edgeprune_device.probes.channel import Channel

__all__ = ["channels"]

# Silicon does not work outside these limits. A zone that is off reads -256 C on JetPack 5, later EAGAIN.
_COLDEST_MC, _HOTTEST_MC = -60000, 150000


def channels(root: Path) -> List[Channel]:
    """One channel per zone, with the same names on all releases.

    "CPU-therm" (JetPack 5) and "cpu-thermal" (6, 7) are both "cpu".
    """
    folders = {folder.name: folder for folder in sysfs.children(root / "sys/devices/virtual/thermal", "thermal_zone")}
    folders.update({folder.name: folder for folder in sysfs.children(root / "sys/class/thermal", "thermal_zone")})
    sensors = []
    for folder in folders.values():
        name = re.sub(r"[-_]therm(al)?$", "", (sysfs.line(folder / "type") or folder.name).lower())
        sensors.append(Channel("temperature", sysfs.clean(name), "C", partial(_read_c, folder / "temp")))
    return sensors


def _read_c(path: Path) -> Optional[float]:
    millidegrees = sysfs.number(path, _COLDEST_MC, _HOTTEST_MC)
    return None if millidegrees is None else millidegrees / 1000
