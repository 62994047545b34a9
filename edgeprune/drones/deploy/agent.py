"""The agent for a root file system that is not running; the versions of Python and the C library come from its files.

As on a live drone, the wheels match its Python, processor and glibc, and its own packages stay in use:
TensorRT's bindings, and the numpy that they were built for, are Debian packages of JetPack. There is no virtual
environment, because its programs cannot be run here: the wheels are unpacked into a folder that Python finds first.
"""

from __future__ import annotations

import re
import struct
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from edgeprune_device.agent import AGENT, PROGRAM
from edgeprune_device.errors import InputError
from edgeprune_device.interpreter import START
from edgeprune_device.option import named
from edgeprune_device.progress import Say

from edgeprune.drones import wheels
from edgeprune.drones.deploy import DeploySettings
from edgeprune.drones.deploy.tree import FILE, FOLDER, Root
from edgeprune.drones.wheels import Python

__all__ = ["files", "learn", "unpack"]

#: In the order of `edgeprune setup`: "python3" comes first.
_PYTHONS = ("python3", *(f"python3.{minor}" for minor in range(14, 7, -1)))
_OLDEST = 8
_MACHINES = {0xB7: "aarch64", 0x3E: "x86_64", 0x28: "arm", 0xF3: "riscv64"}
_NEEDED = "aarch64"
#: {distribution: module}: the names of its metadata and of its folder.
_PACKAGES = {
    "numpy": "numpy", "pillow": "PIL", "pynacl": "nacl", "onnxruntime": "onnxruntime", "onnxruntime_gpu": "onnxruntime",
    "opencv": "cv2", "opencv_python": "cv2", "opencv_python_headless": "cv2", "tensorrt": "tensorrt",
    "cuda_python": "cuda", "pycuda": "pycuda",
}  # fmt: skip
_METADATA = re.compile(r"([A-Za-z0-9_.]+?)-([0-9][0-9A-Za-z.+!_]{0,40}?)(?:-py3\.\d+)?\.(?:dist|egg)-info")
_MAX_PROGRAM_BYTES = 64 << 20
_MAX_FILES, _MAX_FILE_BYTES, _MAX_BYTES = 20_000, 512 << 20, 2 << 30
_SCRIPT = """#!/bin/sh
# edgeprune's agent, as `edgeprune deploy` put it here.
PYTHONPATH={lib}${{PYTHONPATH:+:$PYTHONPATH}}
export PYTHONPATH
exec {python} -c '{start}from edgeprune_device.cli import main
sys.exit(main())' "$@"
"""


def files(root: Root, settings: DeploySettings, say: Say) -> dict[str, bytes] | None:
    """The agent's files, or None if the settings exclude an agent.

    Args:
        root: The root file system.
        settings: The settings of the deployment.
        say: Called with the progress, as text.

    Returns:
        Path below the agent's folder -> content. The files of the wheels are in lib/.

    Raises:
        InputError: The root file system has no suitable Python or another processor, or no wheels match it.
    """
    if not settings.agent:
        return None
    python, executable = learn(root)
    has = ", ".join(f"{name} {number}" for name, number in sorted(python.packages.items())) or "no usable package"
    glibc = ".".join(map(str, python.glibc))
    say(f"{root.what}: {python.machine}, Python {python.version} ({executable}), glibc {glibc}; installed: {has}")
    extras = [] if {"tensorrt", "onnxruntime"} & set(python.packages) else ["ort"]
    if extras:
        say(f"{root.what}: no TensorRT for this Python, so the agent includes ONNX Runtime")
    with tempfile.TemporaryDirectory() as folder:
        try:
            _, needed = wheels.fetch(python, extras)
        except InputError as error:
            raise InputError(
                f"{root.what}: no wheels for the agent ({error}); give {named('no_agent')} to deploy without the agent"
            ) from error
        content = unpack([wheels.device_wheel(Path(folder)), *needed])
    script = _SCRIPT.format(start=START, lib=_quoted(f"{settings.root}/{AGENT}/lib"), python=_quoted(executable))
    return {PROGRAM: script.encode(), **{f"lib/{path}": data for path, data in content.items()}}


def learn(root: Root) -> tuple[Python, str]:
    """Find the Python for the agent.

    Returns:
        (the Python, its path on the drone).

    Raises:
        InputError: No Python is suitable.
    """
    candidates: list[tuple[Python, str]] = []
    why = []
    for name in _PYTHONS:
        real, node = root.find(f"/usr/bin/{name}")
        minor = re.fullmatch(r"/.*/python3\.(\d{1,2})", real)
        if node is None or node.kind != FILE or minor is None or real in [path for _, path in candidates]:
            continue
        if int(minor[1]) < _OLDEST:
            why.append(f"Python 3.{minor[1]} is too old")
            continue
        program = root.read(real, _MAX_PROGRAM_BYTES) or b""
        machine = _machine(program)
        if machine != _NEEDED:
            raise InputError(
                f"{root.what}: wrong processor (found {machine}, expected {_NEEDED}); give the root file system of a "
                "drone"
            )
        version = f"3.{minor[1]}.{_patch(program, int(minor[1]))}"
        candidates.append((Python(version, machine, _glibc(root), _packages(root, int(minor[1]))), real))
    if not candidates:
        reason = "; ".join(why) or "no /usr/bin/python3"
        raise InputError(
            f"{root.what}: no Python for the agent ({reason}; expected 3.{_OLDEST} or newer); give {named('no_agent')} "
            "to deploy without the agent"
        )
    # Prefer the Python with TensorRT, whose bindings work with one Python only; else "python3", which comes first.
    return next((item for item in candidates if "tensorrt" in item[0].packages), candidates[0])


def unpack(paths: Iterable[Path]) -> dict[str, bytes]:
    """The files of wheels as in site-packages: path -> content. Unused files, such as scripts, are left out.

    Raises:
        InputError: A file is not a wheel, or has a path outside of site-packages.
    """
    content: dict[str, bytes] = {}
    size = 0
    for path in paths:
        try:
            with zipfile.ZipFile(path) as opened:
                for info in opened.infolist():
                    name = None if info.is_dir() else _place(path, info)
                    if name is None:
                        continue
                    size += info.file_size
                    if len(content) >= _MAX_FILES or info.file_size > _MAX_FILE_BYTES or size > _MAX_BYTES:
                        raise InputError(
                            f"{path.name}: the wheel is too large (expected at most {_MAX_FILES:,} files and "
                            f"{_MAX_BYTES / 1e6:.0f} MB)"
                        )
                    if name in content:
                        raise InputError(f"{path.name}: {name}: present in two wheels")
                    content[name] = opened.read(info)  # zipfile reads at most info.file_size bytes
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise InputError(f"{path.name}: the wheel cannot be unpacked ({error})") from error
    folders = {"/".join(name.split("/")[:depth]) for name in content for depth in range(1, name.count("/") + 1)}
    if both := sorted(folders & set(content)):
        raise InputError(f"{both[0]}: the wheels conflict (a file in one, a folder in another)")
    return content


def _place(path: Path, info: zipfile.ZipInfo) -> str | None:
    """The path of a wheel's file below site-packages; None if it does not belong there."""
    name, parts = info.filename, info.filename.split("/")
    kind = info.external_attr >> 28  # as in st_mode: 8 is a file, 0 is not given
    if kind not in (0, 8):
        raise InputError(f"{path.name}: {name!r:.200}: not a plain file")
    if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in parts) or len(name) > 500:
        raise InputError(f"{path.name}: {name!r:.200}: not a path inside the wheel")
    if parts[0].endswith(".data"):  # PEP 427
        return "/".join(parts[2:]) if parts[1] in ("purelib", "platlib") and len(parts) > 2 else None
    return name


def _machine(program: bytes) -> str:
    """The processor of an ELF file."""
    if program[:6] != b"\x7fELF\x02\x01":
        return "an unknown processor"
    (number,) = struct.unpack_from("<H", program, 18)
    return _MACHINES.get(number, f"processor {number}")


def _patch(program: bytes, minor: int) -> int:
    """The last part of the version, from the version string inside CPython's interpreter."""
    match = re.search(rb"\x003\.%d\.(\d{1,2})\+?\x00" % minor, program)
    return int(match[1]) if match else 0


def _glibc(root: Root) -> tuple[int, int]:
    for folder in ("/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/lib64", "/lib"):
        library = root.read(f"{folder}/libc.so.6", _MAX_PROGRAM_BYTES)
        if library is not None:
            match = re.search(rb"GNU C Library [^\n\0]{0,120}release version (\d)\.(\d{1,3})", library)
            if match:
                return int(match[1]), int(match[2])
    raise InputError(
        f"{root.what}: version of glibc unknown, so no wheels can be chosen; give {named('no_agent')} to deploy "
        "without the agent"
    )


def _packages(root: Root, minor: int) -> dict[str, str]:
    """Module -> version of the packages that this Python can import, in its search order."""
    packages: dict[str, str] = {}
    for folder in (
        f"/usr/local/lib/python3.{minor}/dist-packages",
        "/usr/lib/python3/dist-packages",
        f"/usr/lib/python3.{minor}/dist-packages",
        f"/usr/lib/python3.{minor}/site-packages",
    ):
        for name in root.listing(folder):
            read = _METADATA.fullmatch(name)
            if read is None:
                continue
            module = _PACKAGES.get(re.sub(r"[-_.]+", "_", read[1]).lower())
            if module and module not in packages and _importable(root, f"{folder}/{module}"):
                packages[module] = read[2]
    return packages


def _importable(root: Root, path: str) -> bool:
    node = root.find(path)[1]
    return node is not None and node.kind == FOLDER


def _quoted(path: str) -> str:
    """The path, quoted for a shell."""
    return "'" + path.replace("'", "'\\''") + "'" if not re.fullmatch(r"[A-Za-z0-9/._-]+", path) else path
