"""Files that are either complete or absent: written under a temporary name, synced, then renamed.

The module does not read their content.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import shutil
import stat
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator, Union

from edgeprune_device.errors import InputError, reason

__all__ = [
    "check_file",
    "check_room",
    "check_writable",
    "has_open",
    "lock",
    "make_folder",
    "opener",
    "replacing",
    "sha256",
    "sync_folder",
    "write_atomic",
]

_CHUNK_BYTES = 1 << 20
_LOCK_POLL_S = 0.05
_KINDS = (
    (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


def write_atomic(path: Union[str, Path], data: Union[bytes, str], mode: int = 0o666) -> Path:
    """Write a file, or leave it unchanged.

    Args:
        path: The file.
        data: Content; str is written as UTF-8.
        mode: Mode of a new file, subject to the umask.

    Returns:
        The path.

    Raises:
        InputError: The disk is full or read-only, the folder is missing, or the user lacks permission.
    """
    path = Path(path)
    content = data.encode("utf-8") if isinstance(data, str) else data
    with replacing(path) as temporary, _explained(path):
        descriptor = os.open(str(temporary), os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
    return path


@contextmanager
def replacing(path: Union[str, Path]) -> Iterator[Path]:
    """A temporary path beside `path`, with the same suffix, renamed to `path` if the block succeeds, else removed.

    For libraries that can only write to a path:

    >>> with replacing("model.onnx") as temporary:      # doctest: +SKIP
    ...     onnx.save(model, str(temporary))

    Raises:
        InputError: The file cannot be written.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        yield temporary
        with _explained(path):
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(str(temporary), str(path))
            sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def check_writable(path: Union[str, Path]) -> None:
    """Check before long work that a file can be written; leaves no file behind.

    Raises:
        InputError: The file cannot be written.
    """
    path = Path(path)
    temporary = _beside(path)
    with _explained(path):
        temporary.touch()
        temporary.unlink()


def make_folder(folder: Union[str, Path], mode: int = 0o755) -> None:
    """Create a folder and its missing parents, so that no other user may write to any of them.

    A umask of 0 does not loosen the modes; a stricter umask applies. An existing folder is not changed.

    Args:
        folder: The folder.
        mode: Mode of the folder; its new parents get 0755.

    Raises:
        OSError: A folder cannot be created.
    """
    folder = Path(folder)
    for each in [*reversed(folder.parents), folder]:
        if not os.path.isdir(str(each)):
            try:
                os.mkdir(str(each), mode if each == folder else 0o755)
            except FileExistsError:
                if not os.path.isdir(str(each)):
                    raise


def opener(path: str, flags: int) -> int:
    """Open a file for `open(path, "wb", opener=opener)`, so that no other user may write to a new file.

    A umask of 0 does not loosen the mode; a stricter umask applies.

    Args:
        path: The file.
        flags: Flags of `os.open`.

    Returns:
        The descriptor.
    """
    return os.open(path, flags, 0o644)


def check_file(path: Union[str, Path]) -> None:
    """Check that an existing path is a regular file, because opening a pipe may wait for ever.

    Raises:
        InputError: The path is a pipe, a socket, a device or a folder.
    """
    try:
        mode = os.stat(str(path)).st_mode
    except (OSError, ValueError):  # an invalid path; opening it gives the reason
        return
    if not stat.S_ISREG(mode):
        kind = next((word for test, word in _KINDS if test(mode)), "a special file")
        raise InputError(f"{path}: not a regular file (found {kind}, expected a file); give the file itself")


def check_room(folder: Union[str, Path], size_bytes: int) -> None:
    """Check that the folder's disk has enough space.

    Raises:
        InputError: Less than `size_bytes` are free.
    """
    try:
        free = shutil.disk_usage(str(folder)).free
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({reason(error)})") from error
    if free < size_bytes:
        raise InputError(
            f"{folder}: not enough space (found {free / 1e6:.1f} MB, expected {size_bytes / 1e6:.1f} MB); free some"
        )


def sha256(path: Union[str, Path]) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits.

    Raises:
        InputError: The file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            for chunk in iter(lambda: stream.read(_CHUNK_BYTES), b""):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from error
    return digest.hexdigest()


def lock(descriptor: int, patience_s: float = math.inf) -> bool:
    """Take the lock of an open file (flock). The kernel releases it when all copies of the descriptor are closed.

    Args:
        descriptor: Descriptor of the file; a child process that inherits it also holds the lock.
        patience_s: How long to wait for another process that holds the lock, s; by default without limit.

    Returns:
        True if this process now holds the lock, False if another one did not release it in time.

    Raises:
        OSError: The file system does not support locks.
    """
    import fcntl  # missing on Windows, where this module is also used

    if patience_s == math.inf:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return True
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
        time.sleep(_LOCK_POLL_S)


def has_open(pid: int, path: Union[str, Path]) -> bool:
    """Whether a process has a file open. A process ID that was read from a file proves nothing without this check.

    Raises:
        PermissionError: The process belongs to another user.
        OSError: There is no such process or file.
    """
    wanted, folder = os.stat(str(path)), f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        with suppress(OSError):  # closed since
            if os.path.samestat(os.stat(f"{folder}/{name}"), wanted):
                return True
    return False


def _beside(path: Path) -> Path:
    """A new name in the same folder, because a rename is atomic only within one file system."""
    with _explained(path):
        if path.is_dir():
            raise IsADirectoryError(21, "is a folder")
        if not path.parent.is_dir():
            raise FileNotFoundError(2, f"the folder {path.parent} does not exist; create the folder first")
    # The random part lets two processes write the same file at once; the last rename wins, and both are complete.
    return path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}.tmp{path.suffix}")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn any OSError into one line that names the requested file, not the temporary one."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({reason(error)})") from error


def sync_folder(folder: Path) -> None:
    """Sync a folder to the disk, without which a rename in it may not survive a power cut."""
    descriptor = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network and FUSE file systems refuse fsync on a folder; the rename itself is done
    finally:
        os.close(descriptor)
