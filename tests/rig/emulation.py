"""arm64 programs run on this machine as if they were its own: qemu-user, told to the kernel while the tests run.

The kernel's table of foreign formats is the whole machine's, so the entry is removed when the last run that uses it is
done. One that a killed run left behind is used, and removed, by the next.
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
    """The kernel gives arm64 programs to qemu inside of the block. F: qemu is opened now, so that it need not be in the
    drone's own root; C: credentials are the program's; O: the program is handed over open."""
    if platform.machine() == "aarch64":
        yield
        return
    with open(_LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # with all other runs
        mounted = not (_TABLE / "register").exists()
        if mounted:
            subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_TABLE)], check=True)
        with suppress(FileExistsError):
            (_TABLE / "register").write_text(f":{_NAME}:M::{_MAGIC}:{_MASK}:{QEMU}:OCF")
        try:
            yield
        finally:
            with suppress(BlockingIOError):  # another run needs it still
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (_TABLE / _NAME).write_text("-1")
                if mounted:
                    subprocess.run(["umount", str(_TABLE)], check=True)
