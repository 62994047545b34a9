"""Runs arm64 programs on this machine with qemu-user, which is registered with the kernel during the tests.

The kernel's table of binary formats is shared by the whole machine, so the entry is removed after the last run that
uses it. If a killed run leaves it behind, the next run uses and removes it.
"""

from __future__ import annotations

import fcntl
import platform
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

QEMU = "/usr/bin/qemu-aarch64-static"
_TABLE = Path("/proc/sys/fs/binfmt_misc")
_NAME = "edgeprune-rig"
_LOCK = "/run/edgeprune-rig.lock"
_MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"


@contextmanager
def registered():
    """Let the kernel start arm64 programs with qemu while the block runs. F: qemu is opened now, so that it need not be
    in the drone's root; C: use the program's credentials; O: pass the program as an open file."""
    if platform.machine() == "aarch64":
        yield
        return
    with open(_LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # shared with all other runs
        mounted = not (_TABLE / "register").exists()
        if mounted:
            subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_TABLE)], check=True)
        with suppress(FileExistsError):
            (_TABLE / "register").write_text(f":{_NAME}:M::{_MAGIC}:{_MASK}:{QEMU}:OCF")
        try:
            yield
        finally:
            with suppress(BlockingIOError):  # another run still needs it
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (_TABLE / _NAME).write_text("-1")
                if mounted:
                    subprocess.run(["umount", str(_TABLE)], check=True)
