"""The state of the board before a run that affects its figures.

The module only reads. Without root, some of the state is hidden: the memory's clock (debugfs), and the open files of
other users' processes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, TypedDict

from edgeprune_device.probes import clocks, fan, memory, sysfs, throttling

__all__ = ["ClockState", "FanState", "GpuUser", "PowerMode", "Preflight", "parse_nvpmodel", "read", "run_nvpmodel"]

_NVPMODEL_S = 5.0
_LITTLE_BYTES = 512 << 20
_MOST_USERS = 100
_CPU_LIST = re.compile(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?){0,99}")
_GPU_FILES = ("/dev/nvhost", "/dev/nvmap", "/dev/nvidia", "/dev/nvgpu")


class PowerMode(TypedDict):
    """The power mode of a Jetson, e.g. {"name": "MAXN_SUPER", "id": 2}.

    Attributes:
        name: Name of the mode.
        id: Its number; None if nvpmodel does not print it.
    """

    name: str
    id: Optional[int]


class ClockState(TypedDict):
    """The state of a clock. None: not known.

    Attributes:
        cur_hz: Current rate, Hz.
        min_hz: Lower limit, Hz.
        max_hz: Upper limit, Hz.
        governor: Name of the governor.
        locked: Whether both limits are equal, as set by jetson_clocks.
    """

    cur_hz: Optional[int]
    min_hz: Optional[int]
    max_hz: Optional[int]
    governor: Optional[str]
    locked: Optional[bool]


class FanState(TypedDict):
    """The state of the fan. None: not known.

    Attributes:
        share: Share of full power.
        rpm: Speed, revolutions per minute.
    """

    share: Optional[float]
    rpm: Optional[float]


class GpuUser(TypedDict):
    """A process that has the GPU's device files open.

    Attributes:
        pid: Id of the process.
        command: Name of the program.
    """

    pid: int
    command: str


@dataclass(frozen=True)
class Preflight:
    """The state of a board. None or an empty dict: not reported by the board.

    Attributes:
        power_mode: The power mode.
        clocks: The clocks by name: "gpu", "cpu0", "emc", …
        cpus_online: Online cores, e.g. "0-5".
        cpus_present: Cores of the board, e.g. "0-7".
        fan: The fan.
        memory: {"total_bytes", "available_bytes", "swap_total_bytes", "swap_used_bytes"}.
        gpu_users: Other processes that have the GPU's device files open, including users of the camera and of the video
            engines.
        gpu_users_complete: Whether every process could be examined.
        throttled: {alert: state} of the currently active alerts.
    """

    power_mode: Optional[PowerMode] = None
    clocks: Mapping[str, ClockState] = field(default_factory=dict)
    cpus_online: Optional[str] = None
    cpus_present: Optional[str] = None
    fan: Optional[FanState] = None
    memory: Mapping[str, Optional[int]] = field(default_factory=dict)
    gpu_users: Tuple[GpuUser, ...] = ()
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
        """The state as readable text, {part: text}, without unknown parts."""
        parts = {}
        if self.power_mode is not None:
            parts["power mode"] = self.power_mode["name"]
        for name, clock in self.clocks.items():
            now = "rate unknown" if clock["cur_hz"] is None else f"{clock['cur_hz'] / 1e6:.0f} MHz"
            held = {True: "locked", False: "not locked", None: "lock unknown"}[clock["locked"]]
            limits = "" if clock["min_hz"] is None or clock["max_hz"] is None else f", {_range(clock)}"
            governor = "" if clock["governor"] is None else f", {clock['governor']}"
            parts[f"clock {name}"] = f"{now}{limits}, {held}{governor}"
        if self.cpus_online is not None:
            present = "" if self.cpus_present is None else f" of {self.cpus_present}"
            parts["cores"] = f"{self.cpus_online}{present} online"
        if self.fan is not None:
            share, rpm = self.fan["share"], self.fan["rpm"]
            turning = [] if share is None else [f"{share:.0%} of full power"]
            parts["fan"] = ", ".join(turning + ([] if rpm is None else [f"{rpm:.0f} rpm"])) or "unknown"
        available, swap = self.memory.get("available_bytes"), self.memory.get("swap_used_bytes")
        if available is not None:
            swapped = "" if swap is None else f", {swap / 1e6:.0f} MB swapped out"
            parts["free memory"] = f"{available / 1e6:.0f} MB{swapped}"
        others = ", ".join(f"{user['command']} ({user['pid']})" for user in self.gpu_users)
        hidden = "" if self.gpu_users_complete else " (processes of other users are hidden; run as root to see them)"
        parts["GPU used by"] = f"{others or 'no other process'}{hidden}"
        return parts

    def notes(self) -> List[str]:
        """Settings of the board that must be stated with every figure, one line each."""
        lines = []
        if self.power_mode is not None and not self.power_mode["name"].upper().startswith("MAXN"):
            lines.append(
                f"the power mode is {self.power_mode['name']} (not MAXN), which limits clocks and cores "
                "(nvpmodel -p --verbose lists the modes, nvpmodel -m N sets one)"
            )
        if self.cpus_online is not None and self.cpus_present not in (None, self.cpus_online):
            lines.append(f"only cores {self.cpus_online} of {self.cpus_present} are online")
        return lines

    def warnings(self) -> List[str]:
        """Causes of unreliable or unrepeatable figures on this board, one line each.

        The power mode and offline cores are deliberate settings, see `notes`.
        """
        lines = []
        moving = [name for name, clock in self.clocks.items() if clock["locked"] is False]
        if moving and "gpu" in self.clocks:  # elsewhere `Environment.warnings` reports the governor
            ranges = ", ".join(f"{name} {_range(self.clocks[name])}" for name in moving)
            lines.append(f"clocks are not locked ({ranges}); run jetson_clocks as root for repeatable figures")
        for name, state in self.throttled.items():
            lines.append(f"{name} is throttled (state {state}); let the board cool down first")
        available = self.memory.get("available_bytes")
        if available is not None and available < _LITTLE_BYTES:
            lines.append(f"only {available / 1e6:.0f} MB of memory are free; close other programs")
        if self.gpu_users:
            names = ", ".join(f"{user['command']} ({user['pid']})" for user in self.gpu_users[:5])
            more = f" and {len(self.gpu_users) - 5} more" if len(self.gpu_users) > 5 else ""
            lines.append(f"other processes have the GPU's device files open: {names}{more}")
        return lines


def read(root: Optional[Path] = None) -> Preflight:
    """Read this board now. Never raises.

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
        throttled={name: int(state) for name, state in alerts.items() if state},
    )


def run_nvpmodel() -> str:
    """The output of `nvpmodel -q`; empty if nvpmodel is missing, fails or takes too long."""
    program = shutil.which("nvpmodel")
    if program is None:
        return ""
    with suppress(OSError, subprocess.SubprocessError):
        # No standard input, because nvpmodel may ask for a password if the user may not read the mode.
        done = subprocess.run(
            [program, "-q"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_NVPMODEL_S,
        )
        return done.stdout[:65536].decode("utf-8", "replace") if done.returncode == 0 else ""
    return ""


def parse_nvpmodel(output: str) -> Optional[PowerMode]:
    r"""Parse the output of nvpmodel, {"name", "id"} or None.

    "NV Power Mode: MAXN_SUPER\n2" gives {"name": "MAXN_SUPER", "id": 2}. Text without a mode gives None.
    """
    lines = [line.strip() for line in output.splitlines()]
    for line, after in zip(lines, [*lines[1:], ""]):
        match = re.search(r"NV Power Mode:\s*([A-Za-z0-9][A-Za-z0-9_.+-]{0,39})$", line)
        if match:
            return {"name": match.group(1), "id": int(after) if re.fullmatch(r"[0-9]{1,3}", after) else None}
    return None


def _clock(domain: clocks.Domain) -> ClockState:
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


def _range(clock: ClockState) -> str:
    ends = [f"{hz / 1e6:.0f}" for hz in (clock["min_hz"], clock["max_hz"]) if hz is not None]
    return f"{' to '.join(ends)} MHz" if len(ends) == 2 else "not locked"


def _cpu_list(path: Path) -> Optional[str]:
    text = sysfs.line(path)
    return text if text and _CPU_LIST.fullmatch(text) else None


def _gpu_users(root: Path) -> Tuple[Tuple[GpuUser, ...], bool]:
    """Other processes with the GPU's device files open, and whether all processes could be examined."""
    users: List[GpuUser] = []
    complete = (root / "proc").is_dir()
    for process in sysfs.children(root / "proc"):
        if not (process.name.isdigit() and process.name.isascii()) or int(process.name) == os.getpid():
            continue
        try:
            descriptors = os.listdir(str(process / "fd"))
        except PermissionError:
            complete = False
            continue
        except OSError:
            continue  # the process has ended
        for descriptor in descriptors:
            with suppress(OSError):
                if os.readlink(str(process / "fd" / descriptor)).startswith(_GPU_FILES):
                    command = sysfs.line(process / "comm") or "unknown"
                    users.append({"pid": int(process.name), "command": command})
                    break
    return tuple(users[:_MOST_USERS]), complete
