"""Wheels for a drone: the device package, built from the installed one, and its dependencies from the registry.

The drone's Python, processor and C library decide which wheels fit, not this machine's. Only wheels are used, because a
drone compiles nothing.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from edgeprune_device import files, interpreter, strict_json
from edgeprune_device.errors import InputError
from edgeprune_device.hint import unknown
from edgeprune_device.option import named
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

__all__ = ["Python", "device_wheel", "extras", "fetch", "platforms"]

DISTRIBUTION = "edgeprune-device"
#: Package -> module, for packages that a board may have from other sources than the registry.
_MODULES = {
    "numpy": "numpy",
    "pillow": "PIL",
    "pynacl": "nacl",
    "onnxruntime": "onnxruntime",
    "opencv-python-headless": "cv2",
    "cuda-python": "cuda",
    "pycuda": "pycuda",
}
_MACHINES = ("aarch64", "x86_64")
_OLDEST_GLIBC = 17  # manylinux2014 is glibc 2.17
#: TensorRT's bindings before this version do not work with numpy 1.24 and later.
_ANY_NUMPY = Version("8.6")


@dataclass(frozen=True)
class Python:
    """A Python on a drone.

    Example: Python("3.10.12", "aarch64", (2, 35), {"numpy": "1.21.5"}).

    Attributes:
        version: Its version.
        machine: The processor.
        glibc: The version of the C library.
        packages: Module -> version of the packages that it can import already.
    """

    version: str
    machine: str
    glibc: tuple[int, int]
    packages: Mapping[str, str] = field(default_factory=dict)

    def has(self, requirement: Requirement) -> bool:
        """Whether it can import a requirement already, in an acceptable version."""
        version = self.packages.get(_MODULES.get(canonicalize_name(requirement.name), ""))
        try:
            return version is not None and requirement.specifier.contains(Version(version), prereleases=True)
        except InvalidVersion:
            return False

    def applies(self, requirement: Requirement, extra: str = "") -> bool:
        """Whether the marker of a requirement holds on the drone.

        Args:
            requirement: The requirement.
            extra: A requested extra.
        """
        if requirement.marker is None:
            return True
        environment = {
            "implementation_name": "cpython",
            "implementation_version": self.version,
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": self.version,
            "python_version": ".".join(self.version.split(".")[:2]),
            "sys_platform": "linux",
        }
        return requirement.marker.evaluate({**environment, "extra": extra})


def platforms(python: Python) -> list[str]:
    """The platform tags that the drone accepts, best first, such as "manylinux_2_31_aarch64".

    Raises:
        InputError: No wheels exist for this machine.
    """
    major, minor = python.glibc
    if python.machine not in _MACHINES or major != 2 or minor < _OLDEST_GLIBC:
        raise InputError(
            f"no wheels exist for this machine (found {python.machine} with glibc {major}.{minor}, expected "
            f"{' or '.join(_MACHINES)} with glibc 2.{_OLDEST_GLIBC} or newer)"
        )
    tags = [f"manylinux_2_{n}_{python.machine}" for n in range(minor, _OLDEST_GLIBC - 1, -1)]
    older = [f"manylinux{n}_{python.machine}" for n in ("2014", "2010", "1")]
    return [*tags, *(older if python.machine == "x86_64" else older[:1])]


def extras() -> list[str]:
    """The names of the extras, such as "ort"."""
    return _distribution().metadata.get_all("Provides-Extra") or []


def requirements(python: Python, wanted: Sequence[str]) -> list[Requirement]:
    """The requirements of the device package with the extras `wanted` on this drone, including installed ones.

    Raises:
        InputError: An extra is unknown.
    """
    for extra in wanted:
        if extra not in extras():
            raise InputError(unknown(f"{named('with')}: unknown extra", extra, extras()))
    listed = [Requirement(text) for text in _distribution().requires or ()]
    return [r for r in listed if python.applies(r) or any(python.applies(r, extra) for extra in wanted)]


def device_wheel(folder: Path) -> Path:
    """Build a wheel in `folder` from the device package that is installed here, editable or not.

    The same content gives the same bytes.
    """
    import edgeprune_device

    distribution = _distribution()
    root = Path(edgeprune_device.__file__).parent
    name = f"edgeprune_device-{distribution.version}"
    content = {
        f"edgeprune_device/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    content[f"{name}.dist-info/METADATA"] = _metadata(distribution, "METADATA")
    content[f"{name}.dist-info/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: edgeprune\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    content[f"{name}.dist-info/entry_points.txt"] = _metadata(distribution, "entry_points.txt")
    record = "".join(f"{entry},{_digest(data)},{len(data)}\n" for entry, data in sorted(content.items()))
    content[f"{name}.dist-info/RECORD"] = f"{record}{name}.dist-info/RECORD,,\n".encode()
    with files.replacing(folder / f"{name}-py3-none-any.whl") as path, zipfile.ZipFile(path, "w") as wheel:
        for entry, data in sorted(content.items(), key=lambda item: (".dist-info/" in item[0], item[0])):
            info = zipfile.ZipInfo(entry, (1980, 1, 1, 0, 0, 0))
            info.external_attr, info.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            wheel.writestr(info, data)
    return folder / f"{name}-py3-none-any.whl"


def fetch(python: Python, wanted: Sequence[str] = ()) -> tuple[Path, list[Path]]:
    """Get the wheels of the device package, with the extras `wanted`, for a drone.

    pip downloads them once from its registry; later calls use the cache.

    Returns:
        (pip's wheel, the wheels that are missing on this drone).

    Raises:
        InputError: The registry does not answer or has no matching wheel, or an extra is unknown.
    """
    roots = [r for r in requirements(python, wanted) if not python.has(r)]
    asked = [*map(_bare, roots), "pip"]
    limits = ["numpy<1.24"] if _has_old_tensorrt(python) else []
    key = hashlib.sha256(
        strict_json.canonical([asked, limits, python.version, platforms(python), dict(python.packages)])
    ).hexdigest()[:16]
    folder = _cache() / f"{python.machine}-py{'.'.join(python.version.split('.')[:2])}-{key}"
    if not _complete(folder):
        _download(python, roots, asked, limits, folder)
    names = sorted(strict_json.loads((folder / "index.json").read_bytes(), str(folder))["files"])
    pip = next(folder / name for name in names if _wheel_name(name) == "pip")
    return pip, [folder / name for name in names if folder / name != pip]


def _download(
    python: Python, roots: Sequence[Requirement], asked: Sequence[str], limits: Sequence[str], folder: Path
) -> None:
    """Fill the cache's `folder` in one step."""
    files.make_folder(_cache())
    with tempfile.TemporaryDirectory(prefix=".", dir=_cache()) as name:
        beside = Path(name)
        missing: Iterable[str] = asked
        # pip evaluates markers such as "python_version < '3.9'" for this machine's Python, so the additional
        # requirements for the drone's Python need another download.
        for _ in range(5):
            _pip_download(python, missing, limits, beside)
            used, lacking = closure(python, roots, beside)
            missing = sorted(map(_bare, lacking))
            if not missing:
                break
        else:
            raise InputError(
                f"the registry's wheels are incomplete for Python {python.version} (missing: {', '.join(missing)})"
            )
        for path in list(beside.glob("*.whl")):
            if path not in used and _wheel_name(path.name) != "pip":
                path.unlink()
        index = {"files": {path.name: files.sha256(path) for path in sorted(beside.glob("*.whl"))}}
        files.write_atomic(beside / "index.json", strict_json.pretty(index))
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another setup has filled it first
            os.rename(beside, folder)


def closure(python: Python, roots: Iterable[Requirement], folder: Path) -> tuple[set[Path], list[Requirement]]:
    """Resolve requirements with the wheels in a folder.

    Args:
        python: The drone's Python.
        roots: The requirements.
        folder: Holds the wheels.

    Returns:
        (the wheels in `folder` that the drone needs, the requirements that neither the folder nor the drone has).
    """
    there = {_wheel_name(path.name): path for path in folder.glob("*.whl")}
    used: set[Path] = set()
    lacking: list[Requirement] = []
    queue, seen = list(roots), set()
    while queue:
        requirement = queue.pop()
        if python.has(requirement) or str(requirement) in seen:
            continue
        seen.add(str(requirement))
        path = there.get(canonicalize_name(requirement.name))
        if path is None or not requirement.specifier.contains(parse_wheel_filename(path.name)[1], prereleases=True):
            lacking.append(requirement)
            continue
        used.add(path)
        needs = [Requirement(text) for text in _requires(path)]
        queue += [
            need
            for need in needs
            if python.applies(need) or any(python.applies(need, extra) for extra in requirement.extras)
        ]
    return used, lacking


def _pip_download(python: Python, asked: Iterable[str], limits: Sequence[str], to: Path) -> None:
    constraints = to / "constraints.txt"
    constraints.write_text("".join(f"{line}\n" for line in limits))
    command = [
        *interpreter.module("pip"), "download", "--quiet", "--disable-pip-version-check", "--no-input",
        "--only-binary=:all:", "--implementation", "cp", "--python-version", python.version,
        *(word for tag in platforms(python) for word in ("--platform", tag)),
        "--constraint", str(constraints), "--dest", str(to), *asked,
    ]  # fmt: skip
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    constraints.unlink()
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        if any("No module named pip" in line for line in lines):
            raise InputError("pip: missing from this environment; install it with python -m ensurepip")
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no message")
        raise InputError(
            f"no wheels for Python {python.version} on {python.machine}, glibc {'.'.join(map(str, python.glibc))}: "
            f"{reason.removeprefix('ERROR: ')[:300]}"
        )


def _complete(folder: Path) -> bool:
    try:
        index = strict_json.loads((folder / "index.json").read_bytes(), str(folder))
        return all(files.sha256(folder / name) == digest for name, digest in index["files"].items())
    except (OSError, InputError):
        return False


def _requires(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as opened:
        name = next(n for n in opened.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1)
        text = opened.read(name).decode("utf-8", "replace")
    head = text.split("\n\n", 1)[0]
    return [line.split(":", 1)[1].strip() for line in head.splitlines() if line.startswith("Requires-Dist:")]


def _has_old_tensorrt(python: Python) -> bool:
    try:
        return "tensorrt" in python.packages and Version(python.packages["tensorrt"]) < _ANY_NUMPY
    except InvalidVersion:
        return False


def _bare(requirement: Requirement) -> str:
    """The requirement without its marker, which has been evaluated for the drone."""
    extra = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extra}{requirement.specifier}"


def _wheel_name(name: str) -> str:
    return parse_wheel_filename(name)[0]


def _digest(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode("ascii").rstrip("=")


def _metadata(distribution: metadata.Distribution, name: str) -> bytes:
    """A file of the distribution's metadata.

    Raises:
        InputError: The file is missing.
    """
    text = distribution.read_text(name)
    if text is None:
        raise InputError(f"{DISTRIBUTION}: {name} is missing on this host; reinstall edgeprune")
    return text.encode("utf-8")


def _distribution() -> metadata.Distribution:
    try:
        return metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise InputError(f"{DISTRIBUTION}: not installed on this host; reinstall edgeprune") from error


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgeprune" / "wheels"
