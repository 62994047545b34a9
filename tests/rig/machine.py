"""A complete arm64 computer under qemu-system, with its own kernel and disk, whose power can be cut.

Unlike the emulated drone it has its own page cache: data that its programs have not synced to the disk is lost with the
power, as on a real board. It is slow, because every instruction is emulated, including the kernel's.
"""

from __future__ import annotations

import io
import os
import select
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

from . import rootfs
from .link import die_with_parent

#: The modules between Debian's kernel and an ext4 on a virtual disk, in the order of their dependencies.
_MODULES = ("virtio_mmio", "virtio_blk", "crc16", "crc32c_generic", "mbcache", "jbd2", "ext4")
_FIRST = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in %s; do /bin/busybox insmod /modules/$module.ko; done
/bin/busybox mount -t ext4 -o noatime /dev/vda /disk || exit 1
exec /bin/busybox switch_root /disk /sbin/machine
"""
_SECOND = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PYTHONPATH=/opt
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
exec %s
"""


def kernel() -> tuple[Path, Path]:
    """(kernel, initial RAM disk) from Debian, created once."""
    folder = rootfs.cache() / f"kernel-arm64-v{rootfs.VERSION}"
    with rootfs.locked(folder.name):
        if not folder.is_dir():
            work = folder.with_name(f".{folder.name}.work")
            shutil.rmtree(work, ignore_errors=True)
            rootfs.unpack(work / "tree", "bookworm", "linux-image-arm64,busybox-static")
            (vmlinuz,) = (work / "tree/boot").glob("vmlinuz-*")
            vmlinuz.rename(work / "vmlinuz")
            _first_disk(work / "tree", work / "initrd")
            shutil.rmtree(work / "tree")
            work.rename(folder)
    return folder / "vmlinuz", folder / "initrd"


def _first_disk(tree: Path, to: Path) -> None:
    """Write busybox, the modules, and a script that continues from the real disk."""
    root = to.with_name("first")
    for name in ("bin", "modules", "dev", "disk"):
        (root / name).mkdir(parents=True)
    shutil.copy2(tree / "bin/busybox", root / "bin/busybox")
    for module in _MODULES:
        (path,) = (tree / "usr/lib/modules").glob(f"*/kernel/**/{module}.ko")
        shutil.copy2(path, root / "modules")
    (root / "init").write_text(_FIRST % " ".join(_MODULES))
    (root / "init").chmod(0o755)
    names = "\n".join(str(p.relative_to(root)) for p in sorted(root.rglob("*")))
    packed = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=names.encode(), stdout=subprocess.PIPE, check=True
    )
    to.write_bytes(packed.stdout)
    shutil.rmtree(root)


class Machine:
    """One computer that runs `command` as its first process when switched on; its console is a pipe.

    /opt contains copies of `programs` (folders, files), and is on Python's search path.
    """

    def __init__(self, folder: Path, base: Path, command: str, programs: list[Path]) -> None:
        self._kernel, self._initrd = kernel()
        self.disk = folder / "disk.img"
        self._qemu: subprocess.Popen | None = None
        tree = folder / "tree"
        subprocess.run(["cp", "-a", str(base), str(tree)], check=True)
        (tree / "opt").mkdir(exist_ok=True)
        for program in programs:
            copy = shutil.copytree if program.is_dir() else shutil.copy2
            copy(program, tree / "opt" / program.name)
        script = tree / "sbin/machine"
        script.write_text(_SECOND % command)
        script.chmod(0o755)
        subprocess.run(
            ["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(self.disk), "1G"], check=True, stdout=subprocess.DEVNULL
        )
        shutil.rmtree(tree)

    def start(self) -> None:
        self._qemu = subprocess.Popen(
            ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a76", "-smp", "1", "-m", "512", "-accel", "tcg",
             "-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio", "-kernel", str(self._kernel),
             "-initrd", str(self._initrd), "-append", "console=ttyAMA0 quiet panic=-1",
             "-drive", f"file={self.disk},format=raw,if=none,id=disk,cache=none",
             "-device", "virtio-blk-device,drive=disk"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=die_with_parent,
        )  # fmt: skip
        os.set_blocking(self._qemu.stdout.fileno(), False)

    def console(self, seconds: float, until: bytes = b"", times: int = 0) -> bytes:
        """The output within `seconds`, at most until `until` has appeared `times` times."""
        output, end = b"", time.monotonic() + seconds
        while time.monotonic() < end and not (until and output.count(until) >= times):
            if select.select([self._qemu.stdout], [], [], max(end - time.monotonic(), 0))[0]:
                more = self._qemu.stdout.read()
                if not more:  # the machine is off
                    break
                output += more
        return output

    def cut_power(self) -> bytes:
        """kill -9, losing unsynced data; return the remaining output of the console."""
        self._qemu.kill()
        os.set_blocking(self._qemu.stdout.fileno(), True)
        rest = self._qemu.stdout.read()
        self._qemu.wait()
        self._qemu = None
        return rest

    def files(self, folder: str) -> dict[str, bytes]:
        """{name: content} of a folder of the disk, after the file system has recovered as on the next start."""
        script = """set -e
            d=$(mktemp -d); mount -o loop "$1" "$d"; mkdir -p "$d/$2"; tar -C "$d/$2" -cf - .; umount "$d"; rmdir "$d"
        """
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "files", str(self.disk), folder],
            stdout=subprocess.PIPE,
            check=True,
        )
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            return {
                member.name.removeprefix("./"): archive.extractfile(member).read()
                for member in archive
                if member.isfile()
            }

    def close(self) -> None:
        if self._qemu:
            self.cut_power()
        self.disk.unlink()
