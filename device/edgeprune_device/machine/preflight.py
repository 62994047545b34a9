"""The state of the board before a run, as far as it decides or spoils a figure.

The module only reads. Without root some of it stays hidden: the memory's clock (debugfs), and the open files of other
users' processes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from edgeprune_device.probes import clocks, fan, memory, sysfs, throttling

__all__ = ["Preflight", "parse_nvpmodel", "read", "run_nvpmodel"]

_NVPMODEL_S = 5.0
_LITTLE_BYTES = 512 << 20
_MOST_USERS = 100
_CPU_LIST = re.compile(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?){0,99}")
_GPU_FILES = ("/dev/nvhost", "/dev/nvmap", "/dev/nvidia", "/dev/nvgpu")


@dataclass(frozen=True)
class Preflight:
    """The state of a board. None, or an empty dict: the board does not report it.

    Attributes:
        power_mode: {"name", "id"}, e.g. {"name": "MAXN_SUPER", "id": 2}.
        clocks: {"gpu", "cpu0", "emc", …: {"cur_hz", "min_hz", "max_hz", "governor", "locked"}}. "locked" means that min
            and max are equal, as jetson_clocks sets them.
        cpus_online: Cores that are switched on, e.g. "0-5".
        cpus_present: Cores of the board, e.g. "0-7".
        fan: {"share", "rpm"}: share of full power, speed.
        memory: {"total_bytes", "available_bytes", "swap_total_bytes", "swap_used_bytes"}.
        gpu_users: [{"pid", "command"}] of other processes that have the GPU's device files open; users of the camera
            and of the video engines are among them.
        gpu_users_complete: Whether every process could be examined.
        throttled: {alert: state} of the alerts that are active now.
    """

    power_mode: Optional[Mapping[str, Any]] = None
    clocks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cpus_online: Optional[str] = None
    cpus_present: Optional[str] = None
    fan: Optional[Mapping[str, Optional[float]]] = None
    memory: Mapping[str, Optional[int]] = field(default_factory=dict)
    gpu_users: Tuple[Mapping[str, Any], ...] = ()
    gpu_users_complete: bool = False
    throttled: Mapping[str, int] = field(default_factory=dict)

    @property
    def clocks_locked(self) -> Optional[bool]:
        """Whether all clocks with known limits are locked; None: no limits are known."""
        known = [clock["locked"] for clock in self.clocks.values() if clock["locked"] is not None]
        return all(known) if known else None

    @classmethod
    def from_json(cls, data: Dict[str, Any]) -> Preflight:
        """Read the object that `to_json` wrote. The caller has checked the schema (`BenchReport.from_json`)."""
        return cls(**{**data, "gpu_users": tuple(data["gpu_users"])})

    def to_json(self) -> Dict[str, Any]:
        """A JSON object that fits `schema/report.json#/$defs/preflight`."""
        return {**asdict(self), "gpu_users": [dict(user) for user in self.gpu_users]}

    def described(self) -> Dict[str, str]:
        """The state in words, {part: text}, for people; unknown parts are left out."""
        found = {}
        if self.power_mode is not None:
            found["power mode"] = self.power_mode["name"]
        for name, clock in self.clocks.items():
            now = "rate unknown" if clock["cur_hz"] is None else f"{clock['cur_hz'] / 1e6:.0f} MHz"
            held = {True: "held", False: "may move", None: "held or not: unknown"}[clock["locked"]]
            limits = "" if clock["min_hz"] is None or clock["max_hz"] is None else f", {_range(clock)}"
            governor = "" if clock["governor"] is None else f", {clock['governor']}"
            found[f"clock {name}"] = f"{now}{limits}, {held}{governor}"
        if self.cpus_online is not None:
            present = "" if self.cpus_present is None else f" of {self.cpus_present}"
            found["cores"] = f"{self.cpus_online}{present} switched on"
        if self.fan is not None:
            share, rpm = self.fan["share"], self.fan["rpm"]
            turning = [] if share is None else [f"{share:.0%} of full power"]
            found["fan"] = ", ".join(turning + ([] if rpm is None else [f"{rpm:.0f} rpm"])) or "unknown"
        if self.memory.get("available_bytes") is not None:
            swap = self.memory.get("swap_used_bytes")
            swapped = "" if swap is None else f", {swap / 1e6:.0f} MB swapped out"
            found["free memory"] = f"{self.memory['available_bytes'] / 1e6:.0f} MB{swapped}"
        others = ", ".join(f"{user['command']} ({user['pid']})" for user in self.gpu_users)
        hidden = "" if self.gpu_users_complete else " (other users' processes hide it: ask as root)"
        found["GPU open in"] = f"{others or 'no other process'}{hidden}"
        return found

    def notes(self) -> List[str]:
        """Settings of the board that belong to every figure measured with them, one line each."""
        found = []
        if self.power_mode is not None and not self.power_mode["name"].upper().startswith("MAXN"):
            found.append(
                f"the power mode is {self.power_mode['name']}, not MAXN: clocks and cores are capped "
                "(nvpmodel -p --verbose lists the modes, nvpmodel -m N sets one)"
            )
        if self.cpus_online is not None and self.cpus_present not in (None, self.cpus_online):
            found.append(f"only the cores {self.cpus_online} of {self.cpus_present} are switched on")
        return found

    def warnings(self) -> List[str]:
        """Causes of doubtful or hardly repeatable figures on this board, one line each.

        The power mode and cores that are off are choices: see `notes`.
        """
        found = []
        moving = [name for name, clock in self.clocks.items() if clock["locked"] is False]
        if moving and "gpu" in self.clocks:  # elsewhere `Environment.warnings` reports the governor
            ranges = ", ".join(f"{name} {_range(self.clocks[name])}" for name in moving)
            found.append(f"clocks may move ({ranges}): jetson_clocks, as root, holds them for figures that repeat")
        for name, state in self.throttled.items():
            found.append(f"{name} is throttled right now (state {state}): let the board cool down first")
        available = self.memory.get("available_bytes")
        if available is not None and available < _LITTLE_BYTES:
            found.append(f"only {available / 1e6:.0f} MB of memory are free: close other programs")
        if self.gpu_users:
            names = ", ".join(f"{user['command']} ({user['pid']})" for user in self.gpu_users[:5])
            more = f" and {len(self.gpu_users) - 5} more" if len(self.gpu_users) > 5 else ""
            found.append(f"other processes have the GPU's device files open: {names}{more}")
        return found


def read(root: Optional[Path] = None) -> Preflight:
    """Read this board now. It never raises.

    Args:
        root: Root of the file system, by default `probes.sysroot()`.
    """
    root = sysfs.sysroot() if root is None else root
    users, complete = _gpu_users(root)
    sizes = memory.read(root)
    alerts = {c.name: c.read() for c in throttling.channels(root) if c.kind == "throttle"}
    fans = {c.name: c.read() for c in fan.channels(root)}
    return Preflight(
        power_mode=parse_nvpmodel(run_nvpmodel()),
        clocks={domain.name: _clock(domain) for domain in clocks.domains(root)},
        cpus_online=_cpu_list(root / "sys/devices/system/cpu/online"),
        cpus_present=_cpu_list(root / "sys/devices/system/cpu/present"),
        fan={"share": fans.get("pwm"), "rpm": fans.get("rpm")} if fans else None,
        memory={f"{name}_bytes": size for name, size in sizes.items()},
        gpu_users=users,
        gpu_users_complete=complete,
        throttled={name: state for name, state in alerts.items() if state},
    )


def run_nvpmodel() -> str:
    """The output of `nvpmodel -q`; empty where there is no nvpmodel, or where it fails or takes too long."""
    program = shutil.which("nvpmodel")
    if program is None:
        return ""
    with suppress(OSError, subprocess.SubprocessError):
        # No standard input: without the right to read the mode it may ask for a password.
        done = subprocess.run(
            [program, "-q"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_NVPMODEL_S,
        )
        return done.stdout[:65536].decode("utf-8", "replace") if done.returncode == 0 else ""
    return ""


def parse_nvpmodel(said: str) -> Optional[Dict[str, Any]]:
    r"""Parse the output of nvpmodel, {"name", "id"} or None.

    "NV Power Mode: MAXN_SUPER\n2" gives {"name": "MAXN_SUPER", "id": 2}. Text without a mode gives None.
    """
    lines = [line.strip() for line in said.splitlines()]
    for line, after in zip(lines, [*lines[1:], ""]):
        match = re.search(r"NV Power Mode:\s*([A-Za-z0-9][A-Za-z0-9_.+-]{0,39})$", line)
        if match:
            return {"name": match.group(1), "id": int(after) if re.fullmatch(r"[0-9]{1,3}", after) else None}
    return None


def _clock(domain: clocks.Domain) -> Dict[str, Any]:
    lowest, highest = domain.hz("lowest"), domain.hz("highest")
    locked = None if lowest is None or highest is None else lowest == highest
    if domain.locked is not None:
        state = sysfs.number(domain.locked, 0, 1)
        locked = None if state is None else state == 1
    return {
        "cur_hz": domain.hz("current"),
        "min_hz": lowest,
        "max_hz": highest,
        "governor": None if domain.governor is None else sysfs.line(domain.governor),
        "locked": locked,
    }


def _range(clock: Mapping[str, Any]) -> str:
    ends = [f"{clock[key] / 1e6:.0f}" for key in ("min_hz", "max_hz") if clock[key] is not None]
    return f"{' to '.join(ends)} MHz" if len(ends) == 2 else "not held"


def _cpu_list(path: Path) -> Optional[str]:
    found = sysfs.line(path)
    return found if found and _CPU_LIST.fullmatch(found) else None


def _gpu_users(root: Path) -> Tuple[Tuple[Dict[str, Any], ...], bool]:
    """Other processes with the GPU's device files open, and whether all processes could be examined."""
    users, complete = [], (root / "proc").is_dir()
    for process in sysfs.children(root / "proc"):
        if not (process.name.isdigit() and process.name.isascii()) or int(process.name) == os.getpid():
            continue
        try:
            descriptors = os.listdir(str(process / "fd"))
        except PermissionError:
            complete = False
            continue
        except OSError:
            continue  # it has ended meanwhile
        for descriptor in descriptors:
            with suppress(OSError):
                if os.readlink(str(process / "fd" / descriptor)).startswith(_GPU_FILES):
                    command = sysfs.line(process / "comm") or "unknown"
                    users.append({"pid": int(process.name), "command": command})
                    break
    return tuple(users[:_MOST_USERS]), complete
