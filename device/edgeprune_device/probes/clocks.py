"""Clocks of GPU, CPU and memory (EMC) with their limits, and the load of the GPU.

The CPU's clock is the rate that was last set. `cpuinfo_cur_freq` would measure it, but with work on the measured core.
Only root can read the EMC's rate (debugfs), except on Thor.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import List, NamedTuple, Optional, Tuple

from edgeprune_device.probes import sysfs
from edgeprune_device.probes.channel import Channel

__all__ = ["Domain", "channels", "domains"]

_LOWEST_HZ, _HIGHEST_HZ = 1_000_000, 20_000_000_000
# Orin and Xavier under JetPack 6 (17000000.gpu); under JetPack 5; Thor, whose gpu-nvd is the video engine.
_GPU = re.compile(r"[0-9a-f]+\.(gpu|ga10b|gv11b)|gpu-gpc-[0-9]+")
_EMC = "sys/kernel/debug/bpmp/debug/clk/emc"


class Domain(NamedTuple):
    """One clock: the files of its current rate and of its limits. The first file with a valid value counts.

    Attributes:
        name: Name of the clock, e.g. "gpu".
        unit_hz: Unit of the files, Hz.
        current: Files of the current rate.
        lowest: Files of the lower limit.
        highest: Files of the upper limit.
        governor: File of the governor.
        locked: File that states whether the rate is locked.
    """

    name: str
    unit_hz: int
    current: Tuple[Path, ...]
    lowest: Tuple[Path, ...]
    highest: Tuple[Path, ...]
    governor: Optional[Path]
    locked: Optional[Path] = None

    def hz(self, which: str) -> Optional[int]:
        """A rate, Hz; None if no file gives one.

        Args:
            which: "current", "lowest" or "highest".
        """
        for path in getattr(self, which):
            value = sysfs.number(path, _LOWEST_HZ // self.unit_hz, _HIGHEST_HZ // self.unit_hz)
            if value is not None:
                return value * self.unit_hz
        return None


def domains(root: Path) -> List[Domain]:
    """The clocks of a board: GPU first, then the CPU's clock policies, then EMC."""
    return [*_gpus(root), *_cpus(root), *_memory(root)]


def channels(root: Path) -> List[Channel]:
    """The current rate of every readable clock, and the GPU's load."""
    rates = [
        Channel("clock", domain.name, "Hz", partial(domain.hz, "current"))
        for domain in domains(root)
        if any(path.exists() for path in domain.current)
    ]
    load = _load_file(root)
    return rates if load is None else [*rates, Channel("load", "gpu", "share", partial(_share, load))]


def _gpus(root: Path) -> List[Domain]:
    folders = [path for path in sysfs.children(root / "sys/class/devfreq") if _GPU.fullmatch(path.name)]
    return [_devfreq("gpu" if i == 0 else f"gpu{i}", folder) for i, folder in enumerate(folders)]


def _devfreq(name: str, folder: Path) -> Domain:
    current, lowest, highest = ((folder / f"{which}_freq",) for which in ("cur", "min", "max"))
    return Domain(name, 1, current, lowest, highest, folder / "governor")


def _cpus(root: Path) -> List[Domain]:
    # One per policy: the cores of a cluster share their clock, so one reading suffices.
    base = root / "sys/devices/system/cpu"
    folders = [(path.name[len("policy") :], path) for path in sysfs.children(base / "cpufreq", "policy")]
    if not folders:
        cores = [path for path in sysfs.children(base, "cpu") if path.name[len("cpu") :].isdigit()]
        folders = [(core.name[len("cpu") :], core / "cpufreq") for core in cores if (core / "cpufreq").is_dir()]
    return [_policy(f"cpu{sysfs.clean(number)}", folder) for number, folder in folders]


def _policy(name: str, folder: Path) -> Domain:
    current, lowest, highest = ((folder / f"scaling_{which}_freq",) for which in ("cur", "min", "max"))
    return Domain(name, 1000, current, lowest, highest, folder / "scaling_governor")


def _memory(root: Path) -> List[Domain]:
    thor = root / "sys/class/devfreq/bwmgr"
    if thor.is_dir():
        return [_devfreq("emc", thor)]
    debug, cap = root / _EMC, root / "sys/kernel/nvpmodel_clk_cap/emc"
    if not (debug.is_dir() or cap.exists()):
        return []
    lowest, highest = (debug / "min_rate",), (cap, debug / "max_rate")  # a cap of 0 means no cap
    return [Domain("emc", 1, (debug / "rate",), lowest, highest, None, debug / "mrq_rate_locked")]


def _load_file(root: Path) -> Optional[Path]:
    candidates = []
    for folder in sysfs.children(root / "sys/class/devfreq"):
        if _GPU.fullmatch(folder.name):
            places = ("platform/bus@0/", "platform/", "")
            candidates.append(folder / "device/load")
            candidates += [root / f"sys/devices/{place}{folder.name}/load" for place in places]
    return next((path for path in candidates if path.exists()), None)


def _share(path: Path) -> Optional[float]:
    permille = sysfs.number(path, 0, 1000)
    return None if permille is None else permille / 1000
