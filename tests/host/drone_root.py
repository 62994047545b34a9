"""A small hand-made root file system like a drone's, and images that contain it.

It is not an operating system: its Python and its C library are a few bytes with the version and the processor, the only
parts that are read. tests/rig/test_image.py starts a real one.
"""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from fakes import models

AARCH64, X86_64 = 0xB7, 0x3E
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
MANIFEST = {
    "name": "tiny", "created": "2026-11-22T23:40:00Z", "edgeprune_version": "0.1.0", "target": "cpu",
    "classes": ["person", "car"], "imgsz": [64, 64], "letterbox": {"pad": 114, "stride": 32},
    "nms": {"conf": 0.25, "iou": 0.7, "max_det": 300}, "output": "raw",
    "models": {"fp32": {"payload": "model.fp32.onnx", "opset": 13, "map50": None, "map50_95": None,
                        "small_map50_95": None}},
    "engines": {}, "evaluation": None, "lineage": {},
}  # fmt: skip
PASSWD = "root:x:0:0:root:/root:/bin/sh\npilot:x:1000:1000:Pilot,,,:/home/pilot:/bin/bash\n"


def bundle(path: Path, *, counter: int = 5, size: int = 40_000, key=None) -> Bundle:
    """A signed bundle whose model is `size` bytes that are not a valid ONNX file."""
    data = {**MANIFEST, "name": path.stem, "counter": counter}
    return Bundle.write(path, data, {"model.fp32.onnx": models.unreadable(size, counter)}, key or keys.load_or_create())


def program(version: str, machine: int = AARCH64) -> bytes:
    """The parts of an interpreter that are read."""
    return b"\x7fELF\x02\x01".ljust(18, b"\0") + machine.to_bytes(2, "little") + b"\0" * 40 + f"\0{version}\0".encode()


def tree(folder: Path, version: str = "3.10.12", machine: int = AARCH64, passwd: str = PASSWD) -> Path:
    """JetPack 6's shape: merged /usr, TensorRT and numpy as Debian packages, a user."""
    minor = ".".join(version.split(".")[:2])
    files = {
        "etc/passwd": passwd.encode(),
        "etc/systemd/system/multi-user.target.wants/.keep": b"",
        "etc/nv_tegra_release": b"# R36 (release), REVISION: 4.3, BOARD: generic, EABI: aarch64\n",
        f"usr/bin/python{minor}": program(version, machine),
        "usr/lib/aarch64-linux-gnu/libc.so.6": b"\0GNU C Library (Ubuntu GLIBC 2.35) stable release version 2.35.\n",
        "usr/lib/python3/dist-packages/numpy-1.21.5.egg-info/PKG-INFO": b"",
        "usr/lib/python3/dist-packages/numpy/__init__.py": b"",
        "usr/lib/python3/dist-packages/onnxruntime-9.9.9.egg-info": b"",  # without the module, so not installed
        f"usr/lib/python{minor}/dist-packages/tensorrt-10.3.0.dist-info/METADATA": b"",
        f"usr/lib/python{minor}/dist-packages/tensorrt/__init__.py": b"",
        "home/pilot/odd name\twith\ttabs": os.urandom(300_000),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / f"usr/bin/python{minor}").chmod(0o755)
    (folder / "usr/bin/python3").symlink_to(f"python{minor}")
    for name in ("bin", "lib"):
        (folder / name).symlink_to(f"usr/{name}")
    return folder


def wheel(folder: Path, name: str = "helper-1.0", files: dict | None = None) -> Path:
    """A wheel with a few files."""
    path = folder / f"{name}-cp310-cp310-manylinux_2_17_aarch64.whl"
    with zipfile.ZipFile(path, "w") as opened:
        for entry, data in (files or {"helper/__init__.py": b"A = 1\n", f"{name}.dist-info/METADATA": b""}).items():
            opened.writestr(entry, data)
    return path


def ext4(tree_: Path, path: Path, size_mb: int, *options: str) -> Path:
    """An ext4 file system with the content of a folder."""
    command = ["mke2fs", "-q", "-t", "ext4", *options, "-d", str(tree_), str(path), f"{size_mb}M"]
    subprocess.run(command, check=True, env={**os.environ, "PATH": PATH}, stdout=subprocess.DEVNULL)
    return path


def gpt(path: Path, parts: list[tuple[str, int, Path | None]]) -> Path:
    """An image of partitions (name, MB, content), made with sfdisk; as in L4T, partition 1 is not the first on the
    disk.
    """
    at, lines, offsets = 20, [], []
    for name, size_mb, _ in parts:
        lines.append(f"start={at * 1048576 // 512}, size={size_mb * 1048576 // 512}, name={name}")
        offsets.append(at)
        at += size_mb
    # The partitions of the boot chain come before it and have higher numbers.
    lines += ["start=2048, size=16384, name=A_kernel", "start=20480, size=8192, name=esp, type=uefi"]
    with open(path, "wb") as stream:
        stream.truncate((at + 1) << 20)
    subprocess.run(
        ["sfdisk", "-q", str(path)], input="\n".join(["label: gpt", *lines]).encode(), check=True,
        env={**os.environ, "PATH": PATH}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    for (_, _, content), offset in zip(parts, offsets):
        if content is not None:
            command = ["dd", f"if={content}", f"of={path}", "bs=1M", f"seek={offset}", "conv=notrunc,sparse"]
            subprocess.run([*command, "status=none"], check=True)
    return path


def as_nobody(work) -> str:
    """The result of `work()`, or its error as text, in an unprivileged process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            reply = str(work())
        except BaseException as error:
            reply = f"{type(error).__name__}: {error}"
        os.write(writer, reply.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as stream:
        reply = stream.read()
    os.waitpid(child, 0)
    return reply
