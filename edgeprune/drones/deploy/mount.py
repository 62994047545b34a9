"""An ext4 file system in a file, written by the kernel, which needs root and a loop device.

The mount is in the name space of a separate process, and disappears when that process ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import tempfile
from pathlib import Path

from edgeprune_device.errors import EdgepruneError, InputError
from edgeprune_device.printable import printable

from edgeprune.drones.deploy import rootfs
from edgeprune.drones.deploy.debugfs import Place
from edgeprune.drones.deploy.tree import TreePlan

__all__ = ["CannotMount", "write"]

_CLONE_NEWNS, _PR_SET_PDEATHSIG = 0x20000, 1
#: The kernel must touch only the blocks of the written files in the overlay: no background zeroing, no holes.
_OPTIONS = "loop,noatime,nodiscard,noinit_itable,nosuid,nodev,noexec"


class CannotMount(Exception):
    """Root, a loop device or a name space is missing; nothing was written."""


def write(place: Place, plan: TreePlan) -> None:
    """Carry out the plan in the file system that fills the file at `place`.

    Raises:
        CannotMount: The file system cannot be mounted; the message gives the reason in one line.
        InputError: The file system cannot be written, and must then be discarded.
    """
    if os.geteuid() != 0:
        raise CannotMount("not root")
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            os.close(reader)
            _work(place, plan, Path(folder), writer)
        os.close(writer)
        with open(reader, "rb") as stream:
            message = stream.read().decode("utf-8", "replace")
        _, status = os.waitpid(child, 0)
    if message.startswith("cannot mount: "):
        raise CannotMount(message.removeprefix("cannot mount: "))
    if message or status:
        raise InputError(message or f"{place.what}: the writing process ended with status {status}")


def _work(place: Place, plan: TreePlan, folder: Path, writer: int) -> None:
    """The work of the child process, which never returns."""
    code = 1
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if libc.unshare(_CLONE_NEWNS):
            raise CannotMount(os.strerror(ctypes.get_errno()).lower())
        os.set_inheritable(place.descriptor, True)
        _call("mount", "--make-rprivate", "/")
        _call("mount", "-t", "ext4", "-o", _OPTIONS, f"/proc/self/fd/{place.descriptor}", str(folder))
        rootfs.write(folder, plan, owners=True)
        _call("umount", str(folder))
        code = 0
    except CannotMount as error:
        os.write(writer, f"cannot mount: {error}".encode())
    except EdgepruneError as error:
        os.write(writer, str(error).replace(str(folder), place.what).encode())
    except BaseException as error:  # any error: the parent reports it
        os.write(writer, f"{place.what}: {type(error).__name__}: {error}".encode()[:1000])
    finally:
        os._exit(code)


def _call(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, close_fds=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise CannotMount(printable(lines[0][:200]))
