"""Checks of this machine: missing parts, and how to install them.

A check is a function that returns a `Check`. The host's checks come from the entry-point group `edgeprune.doctor`,
whose entries are modules with a list `CHECKS`.
"""

from __future__ import annotations

import importlib
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from edgeprune_device import options

__all__ = ["CHECKS", "Check", "examine", "library"]

_PLENTY_BYTES = 500 * 10**6
_VENV = "use edgeprune setup, or python3 -m venv --system-site-packages"


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Examples: Check("Pillow", "ok", "12.0.0") and Check("TensorRT", "missing", "not found", "sudo apt install …").

    Attributes:
        name: Name of the checked part.
        state: "ok"; "note": a remark, or an optional part is absent; "missing": edgeprune does not work without it;
            "damaged": it was changed since it was installed.
        detail: The version or state that was found.
        advice: The remedy, if any.
    """

    name: str
    state: str
    detail: str
    advice: str = ""

    def to_json(self) -> Dict[str, Any]:
        """A JSON object."""
        return {"name": self.name, "state": self.state, "found": self.detail, "advice": self.advice}


def examine() -> List[Check]:
    """Run every check of this machine, the device's before the host's.

    A check that raises is reported as missing and does not stop the others.
    """
    checks = []
    for check in [*CHECKS, *_from_host()]:
        try:
            checks.append(check())
        except Exception as error:  # broken installations must be reported, not raised
            words = " ".join(str(error).split())[:200]
            checks.append(Check(check.__name__.replace("_", " "), "missing", f"{type(error).__name__}: {words}"))
    return checks


def library(name: str, module: str, advice: str, state: str = "missing") -> Check:
    """Check whether a Python module can be imported, and its version.

    Args:
        name: Name for the result.
        module: Name of the module.
        advice: The remedy if it is missing.
        state: The state if it is missing.
    """
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        absent = getattr(error, "name", None) in (module, module.split(".")[0])
        return Check(name, state, "not installed" if absent else f"does not load: {error}", advice)
    except Exception as error:  # a module built for another numpy can raise any error
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
        return Check(name, "missing", f"does not load: {words}", advice)
    return Check(name, "ok", str(getattr(imported, "__version__", "installed")))


def python() -> Check:
    """The interpreter."""
    kind = "virtual environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    return Check("Python", "ok", f"{platform.python_version()}, {platform.machine()}, {kind} {sys.prefix}")


def board_() -> Check:
    """The board, from its device tree."""
    from edgeprune_device.machine import board

    this_board = board.read()
    if this_board.model is None and this_board.l4t is None:
        return Check("board", "note", "not a Jetson, or the device tree cannot be read")
    releases = [f"L4T {this_board.l4t}"] if this_board.l4t else []
    releases += [f"JetPack {this_board.jetpack}"] if this_board.jetpack else []
    return Check("board", "ok", ", ".join([this_board.model or "unknown", *releases]))


def numpy() -> Check:
    """numpy, in the version of the board."""
    return library("numpy", "numpy", "pip install numpy")


def pillow() -> Check:
    """Pillow, which decodes images."""
    return library("Pillow", "PIL", "pip install Pillow")


def pynacl() -> Check:
    """PyNaCl, which verifies bundles and signs reports."""
    return library("PyNaCl", "nacl", "pip install PyNaCl")


def opencv() -> Check:
    """OpenCV, which is optional, resizes faster and reads videos."""
    return library("OpenCV", "cv2", "optional: faster resizing, videos; apt install python3-opencv", "note")


def onnx_runtime() -> Check:
    """ONNX Runtime, which runs models on the CPU and is the reference of bench --check."""
    advice = "optional beside TensorRT: edgeprune setup --with ort, or pip install onnxruntime"
    return library("ONNX Runtime", "onnxruntime", advice, "note")


def tensorrt() -> Check:
    """TensorRT's Python bindings, installed by JetPack with apt."""
    if not _jetson():
        return library("TensorRT", "tensorrt", "needed only on a Jetson", "note")
    advice = "sudo apt install python3-libnvinfer"
    if _isolated():
        advice = f"this environment does not see apt's packages; {_VENV}"
    return library("TensorRT", "tensorrt", advice)


def cuda() -> Check:
    """The CUDA backends, which handle the GPU's memory."""
    from edgeprune_device.cuda import available

    reasons = available()
    working = [name for name, why in reasons.items() if why is None]
    if working:
        return Check("CUDA", "ok", ", ".join(working))
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    advice = "sudo apt install nvidia-jetpack installs libcudart" if _jetson() else ""
    return Check("CUDA", "missing" if _jetson() else "note", why, advice)


def runtime() -> Check:
    """The runtimes that can run a model here."""
    from edgeprune_device import runtimes

    working = [name for name, why in runtimes.available().items() if why is None and name != "null"]
    if working:
        return Check("inference", "ok", ", ".join(working))
    return Check(
        "inference",
        "missing",
        "no runtime is available",
        "install ONNX Runtime (edgeprune setup --with ort) or TensorRT",
    )


def sensors() -> Check:
    """The sensors, by kind."""
    from edgeprune_device import probes

    kinds: Dict[str, int] = {}
    for channel in probes.discover():
        if channel.read() is not None:
            kinds[channel.kind] = kinds.get(channel.kind, 0) + 1
    summary = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
    if "power" in kinds or not _jetson():
        return Check("sensors", "ok" if "power" in kinds else "note", summary)
    advice = "in a container, mount the host's /sys and set EDGEPRUNE_SYSROOT"
    return Check("sensors", "note", f"{summary}; no power sensor", advice)


def power_mode() -> Check:
    """nvpmodel, which reports the power mode."""
    from edgeprune_device.machine import preflight

    if not _jetson():
        return Check("power mode", "note", "nvpmodel exists only on a Jetson")
    mode = preflight.read().power_mode
    if mode:
        return Check("power mode", "ok", mode["name"])
    return Check(
        "power mode",
        "note",
        "not reported by nvpmodel",
        "reports will contain no power mode; NVIDIA's containers have no nvpmodel",
    )


def conditions() -> Check:
    """The current conditions that would distort a benchmark."""
    from edgeprune_device.machine import preflight

    warnings = preflight.read().warnings()
    return Check("bench", "note" if warnings else "ok", "; ".join(warnings) or "no disturbing conditions found")


def wall_clock() -> Check:
    """Whether the clock has been set."""
    from edgeprune_device import clock

    synchronized = clock.now()["synchronized"]
    words = {True: "synchronized", False: "not synchronized", None: "synchronization unknown"}[synchronized]
    why = (
        ""
        if synchronized
        else "reports then rely on the boot's ID and time; collect the reports before the next reboot"
    )
    return Check("clock", "ok" if synchronized else "note", words, why)


def spool() -> Check:
    """The folder in which reports wait."""
    from edgeprune_device.reports.spool import Spool

    store = Spool()
    waiting = sum(not entry.delivered for entry in store.entries())
    store.reserve(1 << 20)  # raises a readable error if the folder cannot be written
    store.release()
    return Check("spool", "ok", f"{store.folder}, {waiting} reports waiting")


def disk() -> Check:
    """Free disk space for engines and reports."""
    from edgeprune_device.reports.spool import Spool

    place = next(path for path in [Spool().folder, *Spool().folder.parents] if path.exists())
    free = shutil.disk_usage(str(place)).free
    if free > _PLENTY_BYTES:
        return Check("disk", "ok", f"{free / 1e9:.1f} GB free")
    advice = "engines and reports need space; clear ~/.cache/edgeprune, or run edgeprune spool --prune"
    return Check("disk", "note", f"{free / 1e9:.1f} GB free", advice)


def trust() -> Check:
    """The keys whose bundles are accepted here, and whether another user could change them."""
    from edgeprune_device.trust import keys

    problems = keys.problems()
    if problems:
        return Check("trusted keys", "missing", "; ".join(problems), "apply each remedy listed above")
    others = sorted(set(keys.trusted()) - set(keys.own()))
    if others or keys.own():
        return Check("trusted keys", "ok", ", ".join([*keys.own(), *others]))
    return Check(
        "trusted keys",
        "note",
        "none, so no bundle is accepted",
        "run edgeprune setup on the host, which installs the host's key here",
    )


def releases() -> Check:
    """Whether the installed releases are intact, with the files that other programs read."""
    from edgeprune_device.installation import contents
    from edgeprune_device.releases import Releases

    store = Releases(options.ROOT)
    problems = [(release, contents.problem(store, release)) for release in store.all()]
    damaged = [f"{release}: {why}" for release, why in problems if why]
    if damaged:
        advice = "install the bundle again with edgeprune install or deploy"
        return Check("releases", "damaged", "; ".join(damaged), advice)
    if not problems:
        return Check("releases", "note", f"none in {store.root}")
    return Check("releases", "ok", f"{len(problems)} in {store.root}, all files intact")


CHECKS: List[Callable[[], Check]] = [
    python, board_, numpy, pillow, pynacl, opencv, tensorrt, cuda, onnx_runtime, runtime,
    sensors, power_mode, conditions, wall_clock, spool, disk, trust, releases,
]  # fmt: skip


def _from_host() -> List[Callable[[], Check]]:
    points = metadata.entry_points()
    group = points.select(group="edgeprune.doctor") if hasattr(points, "select") else points.get("edgeprune.doctor", ())
    checks: List[Callable[[], Check]] = []
    for point in sorted({point.value: point for point in group}.values(), key=lambda point: point.value):
        checks += point.load().CHECKS
    return checks


def _jetson() -> bool:
    from edgeprune_device.machine import board

    return board.read().l4t is not None


def _isolated(prefix: Optional[str] = None) -> bool:
    """Whether this is a virtual environment that does not see the system's packages."""
    try:
        text = (Path(prefix or sys.prefix) / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return False
    return "include-system-site-packages = true" not in text.lower()
