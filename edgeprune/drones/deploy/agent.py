"""The agent for a root file system that is not running: its Python and C library are read from its files.

As on a live drone, the wheels are chosen for its own Python, processor and glibc, and packages that it has stay in use:
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

from edgeprune_device.errors import InputError
from edgeprune_device.interpreter import START

from edgeprune.drones import wheels
from edgeprune.drones.deploy import DeploySettings
from edgeprune.drones.deploy.tree import FILE, FOLDER, Root, Say
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
    """The agent's files, or None where the settings exclude an agent.

    Args:
        root: The root file system.
        settings: The settings of the deployment.
        say: Called with the progress, as text.

    Returns:
        Path below the agent's folder -> content. The files of the wheels are in lib/.

    Raises:
        InputError: The root file system has no suitable Python or another processor, or there are no wheels.
    """
    if not settings.agent:
        return None
    python, executable = learn(root)
    has = ", ".join(f"{name} {number}" for name, number in sorted(python.packages.items())) or "nothing of use"
    glibc = ".".join(map(str, python.glibc))
    say(f"{root.what}: {python.machine}, Python {python.version} ({executable}), glibc {glibc}; there already: {has}")
    extras = [] if {"tensorrt", "onnxruntime"} & set(python.packages) else ["ort"]
    if extras:
        say(f"{root.what}: has no TensorRT for this Python; the agent brings ONNX Runtime")
    with tempfile.TemporaryDirectory() as folder:
        try:
            _, needed = wheels.fetch(python, extras)
        except InputError as error:
            raise InputError(f"{root.what}: no wheels for its agent; --no-agent leaves it out ({error})") from error
        content = unpack([wheels.device_wheel(Path(folder)), *needed])
    script = _SCRIPT.format(start=START, lib=_quoted(f"{settings.root}/agent/lib"), python=_quoted(executable))
    return {"bin/edgeprune": script.encode(), **{f"lib/{path}": data for path, data in content.items()}}


def learn(root: Root) -> tuple[Python, str]:
    """Find the Python for the agent.

    Returns:
        (the Python, its path on the drone).

    Raises:
        InputError: There is no suitable one.
    """
    found, why = [], []
    for name in _PYTHONS:
        real, node = root.find(f"/usr/bin/{name}")
        minor = re.fullmatch(r"/.*/python3\.(\d{1,2})", real)
        if node is None or node.kind != FILE or minor is None or real in [path for _, path in found]:
            continue
        if int(minor[1]) < _OLDEST:
            why.append(f"Python 3.{minor[1]} is too old")
            continue
        program = root.read(real, _MAX_PROGRAM_BYTES) or b""
        machine = _machine(program)
        if machine != _NEEDED:
            raise InputError(f"{root.what}: is for {machine}, not for {_NEEDED}: it is no drone's")
        version = f"3.{minor[1]}.{_patch(program, int(minor[1]))}"
        found.append((Python(version, machine, _glibc(root), _packages(root, int(minor[1]))), real))
    if not found:
        reason = "; ".join(why) or "there is no /usr/bin/python3"
        raise InputError(
            f"{root.what}: no Python that the agent could use ({reason}); it needs 3.{_OLDEST} or newer; --no-agent "
            "leaves it out"
        )
    # The one that has TensorRT, whose bindings belong to one Python; else "python3", which comes first.
    return next((item for item in found if "tensorrt" in item[0].packages), found[0])


def unpack(paths: Iterable[Path]) -> dict[str, bytes]:
    """The files of wheels, as they lie in site-packages: path -> content. Scripts and the like, which are not used, are
    left out.

    Raises:
        InputError: A file is no wheel, or would put something elsewhere.
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
                        raise InputError(f"{path.name}: too many or too large files for a wheel")
                    if name in content:
                        raise InputError(f"{path.name}: {name} is in another wheel, too")
                    content[name] = opened.read(info)  # never more than it claims
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise InputError(f"{path.name}: not a wheel that can be unpacked ({error})") from error
    folders = {"/".join(name.split("/")[:depth]) for name in content for depth in range(1, name.count("/") + 1)}
    if both := sorted(folders & set(content)):
        raise InputError(f"{both[0]}: is a file in one wheel and a folder in another")
    return content


def _place(path: Path, info: zipfile.ZipInfo) -> str | None:
    """The place of a wheel's file below site-packages; None where it has none."""
    name, parts = info.filename, info.filename.split("/")
    kind = info.external_attr >> 28  # as in st_mode: 8 is a file, 0 where the archive does not say
    if kind not in (0, 8):
        raise InputError(f"{path.name}: {name!r:.200} is not a plain file")
    if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in parts) or len(name) > 500:
        raise InputError(f"{path.name}: {name!r:.200} is not a path inside of it")
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
    """The last part of its version: CPython's interpreter holds the whole version as a string."""
    found = re.search(rb"\x003\.%d\.(\d{1,2})\+?\x00" % minor, program)
    return int(found[1]) if found else 0


def _glibc(root: Root) -> tuple[int, int]:
    for folder in ("/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/lib64", "/lib"):
        library = root.read(f"{folder}/libc.so.6", _MAX_PROGRAM_BYTES)
        if library is not None:
            found = re.search(rb"GNU C Library [^\n\0]{0,120}release version (\d)\.(\d{1,3})", library)
            if found:
                return int(found[1]), int(found[2])
    raise InputError(f"{root.what}: has no glibc that says its version, so there are no wheels for it; --no-agent")


def _packages(root: Root, minor: int) -> dict[str, str]:
    """Module -> version, of those that this Python can import already, in the order of its search."""
    found: dict[str, str] = {}
    for folder in (
        f"/usr/local/lib/python3.{minor}/dist-packages",
        "/usr/lib/python3/dist-packages",
        f"/usr/lib/python3.{minor}/dist-packages",
        f"/usr/lib/python3.{minor}/site-packages",
    ):
        for name in root.listing(folder):
            read = _METADATA.fullmatch(name)
            module = _PACKAGES.get(re.sub(r"[-_.]+", "_", read[1]).lower()) if read else None
            if module and module not in found and _importable(root, f"{folder}/{module}"):
                found[module] = read[2]
    return found


def _importable(root: Root, path: str) -> bool:
    node = root.find(path)[1]
    return node is not None and node.kind == FOLDER


def _quoted(path: str) -> str:
    """The path, quoted for a shell."""
    return "'" + path.replace("'", "'\\''") + "'" if not re.fullmatch(r"[A-Za-z0-9/._-]+", path) else path
