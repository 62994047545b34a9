"""The fan: its share of full power (pwm1) and its speed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import List, Optional

from edgeprune_device.probes import sysfs
from edgeprune_device.probes.channel import Channel

__all__ = ["channels"]

_MOST_RPM = 50000


def channels(root: Path) -> List[Channel]:
    """The channels "pwm" (share) and "rpm", if the board has them."""
    sensors = []
    for chip, folder in sysfs.hwmons(root):
        if chip in ("pwmfan", "pwm-fan", "pwm_fan") and (folder / "pwm1").exists():
            sensors.append(Channel("fan", "pwm", "share", partial(_share, folder / "pwm1")))
        # On a Jetson the tachometer is a separate device, whose name has changed; only NVIDIA's has the file `rpm`.
        # All other Linux machines have `fan1_input`.
        for file in ("rpm", "fan1_input"):
            if (folder / file).exists():
                sensors.append(Channel("fan", "rpm", "rpm", partial(sysfs.number, folder / file, 0, _MOST_RPM)))
                break
    return sensors


def _share(path: Path) -> Optional[float]:
    duty = sysfs.number(path, 0, 255)
    return None if duty is None else round(duty / 255, 3)
