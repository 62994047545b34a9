"""arm64 programs run on this machine as if they were its own: qemu-user, told to the kernel while the tests run.

The kernel's table of foreign formats is the whole machine's, so the entry is removed when the last test is done, and
one that a killed run left behind is removed by the next.
"""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

QEMU = "/usr/bin/qemu-aarch64-static"
_TABLE = Path("/proc/sys/fs/binfmt_misc")
_MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"


@contextmanager
def registered():
    """The kernel gives arm64 programs to qemu inside of the block. F: qemu is opened now, so that it need not be in the
    drone's own root; C: credentials are the program's; O: the program is handed over open."""
    if platform.machine() == "aarch64":
        yield
        return
    mounted = not (_TABLE / "register").exists()
    if mounted:
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_TABLE)], check=True)
    for old in _TABLE.glob("edgeprune-rig-*"):
        if not Path("/proc", old.name.rpartition("-")[2]).exists():
            _remove(old)
    name = f"edgeprune-rig-{os.getpid()}"
    (_TABLE / "register").write_text(f":{name}:M::{_MAGIC}:{_MASK}:{QEMU}:OCF")
    try:
        yield
    finally:
        _remove(_TABLE / name)
        if mounted and not list(_TABLE.glob("edgeprune-rig-*")):
            subprocess.run(["umount", str(_TABLE)], capture_output=True)  # busy: another run's, which does it then


def _remove(entry: Path) -> None:
    with suppress(OSError):
        entry.write_text("-1")
