"""An ext4 file system in a file, written by the kernel; this needs root and a loop device.

The mount lives in a name space of a process of its own, so that it disappears with the process when that ends.
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
#: The kernel must touch no more of the overlay than the files to write: no zeroing in the background, no holes.
_OPTIONS = "loop,noatime,nodiscard,noinit_itable,nosuid,nodev,noexec"


class CannotMount(Exception):
    """There is no root, no loop device or no name space; nothing was written."""


def write(place: Place, plan: TreePlan) -> None:
    """Carry out the plan in the file system that is the whole file at `place`.

    Raises:
        CannotMount: It cannot be mounted; the message has the reason in one line.
        InputError: It cannot be written. The file system must then be discarded.
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
            said = stream.read().decode("utf-8", "replace")
        _, status = os.waitpid(child, 0)
    if said.startswith("cannot mount: "):
        raise CannotMount(said.removeprefix("cannot mount: "))
    if said or status:
        raise InputError(said or f"{place.what}: the process that wrote to it ended with {status}")


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
    except BaseException as error:  # of any kind: the parent reports it
        os.write(writer, f"{place.what}: {type(error).__name__}: {error}".encode()[:1000])
    finally:
        os._exit(code)


def _call(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, close_fds=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise CannotMount(printable(lines[0][:200]))
