"""The power of the board, rail by rail: TI's INA3221 on a Jetson's module, INA238 on Thor's carrier.

Each reading takes one of voltage and one of current over I2C, about half a millisecond each on an AGX Orin. The chip
returns the mean over its last conversion. The alarm files are not read, because reading clears an alarm, and the
board's own protection needs it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence, Tuple

from edgeprune_device.probes import sysfs
from edgeprune_device.probes.channel import Channel

__all__ = ["Total", "channels", "total"]

_MOST_MV = 32760  # the chip's range
_MOST_MA = 82000  # its range at a shunt of 2 milliohms, the smallest on a Jetson
_OFFSET_MA = -100  # a rail that is off reads slightly below zero
_MOST_MW = 300000  # more than any Jetson draws: Thor's input is limited to 168 W

#: The sensor of the total power, according to NVIDIA's forum: VDD_IN ("the total power of module"), Thor's VIN ("total
#: input power", including devices on the carrier).
_WHOLE = {"VDD_IN": "the whole module", "VIN": "the whole board including its carrier"}
#: Otherwise these, which according to NVIDIA make up the module. VDDQ_VDD2_1V8AO (memory, on AGX Orin) is not listed:
#: VIN_SYS_5V0 supplies it and includes it (Developer Guide r36.4.3, "Software-Based Power Consumption Modeling").
_SUMS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),  # Thor, whose carrier lacks the INA238
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)
_INSIDE = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}


class Total(NamedTuple):
    """The computation of the total power from the rails.

    Attributes:
        source: Description for the report.
        whole_module: Whether a single sensor measures the whole.
        rails: The rails to add; empty if the total is not known.
    """

    source: str
    whole_module: bool
    rails: Tuple[str, ...]


def channels(root: Path) -> List[Channel]:
    """Every rail with a label, except "NC", not connected. The meaning of a rail without a label is unknown."""
    sensors = []
    for chip, folder in sysfs.hwmons(root):
        if chip == "ina3221":
            # in7 is skipped: it also has a label, but is the sum of the shunts' voltages, not a power.
            for n in (1, 2, 3):
                label = sysfs.line(folder / f"in{n}_label") or sysfs.line(folder / f"curr{n}_label")
                if label and label != "NC" and sysfs.text(folder / f"in{n}_enable") != "0":
                    sensors.append(Channel("power", sysfs.clean(label), "mW", partial(_product_mw, folder, n, label)))
        elif chip == "ina238":
            label = sysfs.line(folder / "power1_label") or sysfs.line(folder / "in1_label") or "VIN"
            sensors.append(Channel("power", sysfs.clean(label), "mW", partial(_power_mw, folder)))
    return sensors


def total(names: Sequence[str]) -> Optional[Total]:
    """Choose the computation of the total power of a board.

    Args:
        names: Names of the rails that the board has.

    Returns:
        The rule; None without rails.
    """
    for name, what in _WHOLE.items():
        if name in names:
            return Total(f"{name}, {what}", True, (name,))
    for rails in _SUMS:
        if all(rail in names for rail in rails):
            left = [f"{rail} is part of {_INSIDE[rail]}" for rail in names if _INSIDE.get(rail) in rails]
            note = f" ({', '.join(left)}; not added again)" if left else ""
            return Total(f"sum of rails {' + '.join(rails)}{note}", False, rails)
    if not names:
        return None
    return Total("separate rails: no sensor measures the total, and the overlap of these rails is unknown", False, ())


def _product_mw(folder: Path, n: int, label: str) -> Optional[float]:
    millivolts = sysfs.number(folder / f"in{n}_input", 0, _MOST_MV)
    milliamperes = sysfs.number(folder / f"curr{n}_input", _OFFSET_MA, _MOST_MA)
    if millivolts is None or milliamperes is None:
        return None
    milliwatts = millivolts * max(milliamperes, 0) / 1000
    if milliwatts > _MOST_MW or (milliwatts == 0 and label in _WHOLE):
        return None  # a running board draws power
    return milliwatts


def _power_mw(folder: Path) -> Optional[float]:
    microwatts = sysfs.number(folder / "power1_input", 1, _MOST_MW * 1000)
    return None if microwatts is None else microwatts / 1000
