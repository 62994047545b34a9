"""The power of the board, rail by rail: TI's INA3221 on a Jetson's module, INA238 on Thor's carrier.

Each reading is one of voltage and one of current over I2C, about half a millisecond each on an AGX Orin. The chip
returns the mean over its own last conversion. The alarm files are not read, because the chip clears an alarm when it is
read, and the board's own protection needs it.
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
_OFFSET_MA = -100  # a rail that is off reads a little below zero
_MOST_MW = 300000  # no Jetson draws as much: Thor's input is limited to 168 W

#: The one sensor that sees everything: NVIDIA's forum on VDD_IN ("the total power of module"), on Thor's VIN ("total
#: input power", including devices on the carrier).
_WHOLE = {"VDD_IN": "the whole module", "VIN": "the whole board, its carrier included"}
#: Else these, which NVIDIA says make up the module. VDDQ_VDD2_1V8AO (memory, on AGX Orin) is not among them: it is
#: fed from VIN_SYS_5V0 and so in it already (Developer Guide r36.4.3, "Software-Based Power Consumption Modeling").
_SUMS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),  # Thor, whose carrier lacks the INA238
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)
_INSIDE = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}


class Total(NamedTuple):
    """How the total power is computed from the rails.

    Attributes:
        source: Description for the report.
        whole_module: Whether a single sensor measures the whole.
        rails: The rails to add; empty where the total is not known.
    """

    source: str
    whole_module: bool
    rails: Tuple[str, ...]


def channels(root: Path) -> List[Channel]:
    """Every rail with a label. "NC" means not connected, and a rail without a label is of unknown meaning."""
    found = []
    for chip, folder in sysfs.hwmons(root):
        if chip == "ina3221":
            # in7 is skipped: it has a label, too, but is the sum of the shunts' voltages, which is no power.
            for n in (1, 2, 3):
                label = sysfs.line(folder / f"in{n}_label") or sysfs.line(folder / f"curr{n}_label")
                if label and label != "NC" and sysfs.text(folder / f"in{n}_enable") != "0":
                    found.append(Channel("power", sysfs.clean(label), "mW", partial(_product_mw, folder, n, label)))
        elif chip == "ina238":
            label = sysfs.line(folder / "power1_label") or sysfs.line(folder / "in1_label") or "VIN"
            found.append(Channel("power", sysfs.clean(label), "mW", partial(_power_mw, folder)))
    return found


def total(names: Sequence[str]) -> Optional[Total]:
    """How to compute the total power of a board.

    Args:
        names: Names of the rails that the board has.

    Returns:
        The rule; None where there are no rails.
    """
    for name, what in _WHOLE.items():
        if name in names:
            return Total(f"{name}, {what}", True, (name,))
    for rails in _SUMS:
        if all(rail in names for rail in rails):
            left = [f"{rail} lies inside {_INSIDE[rail]}" for rail in names if _INSIDE.get(rail) in rails]
            note = f" ({', '.join(left)}; not added again)" if left else ""
            return Total(f"sum of rails {' + '.join(rails)}{note}", False, rails)
    if not names:
        return None
    return Total("rails alone: no sensor sees the whole, and how these rails overlap is not known", False, ())


def _product_mw(folder: Path, n: int, label: str) -> Optional[float]:
    millivolts = sysfs.number(folder / f"in{n}_input", 0, _MOST_MV)
    milliamperes = sysfs.number(folder / f"curr{n}_input", _OFFSET_MA, _MOST_MA)
    if millivolts is None or milliamperes is None:
        return None
    milliwatts = millivolts * max(milliamperes, 0) / 1000
    if milliwatts > _MOST_MW or (milliwatts == 0 and label in _WHOLE):
        return None  # a board that answers draws something
    return milliwatts


def _power_mw(folder: Path) -> Optional[float]:
    microwatts = sysfs.number(folder / "power1_input", 1, _MOST_MW * 1000)
    return None if microwatts is None else microwatts / 1000
