"""Files that are either complete or absent: written beside, synced, then renamed.

The module does not read their content.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator, Union

from edgeprune_device.errors import InputError

__all__ = ["check_room", "check_writable", "replacing", "sha256", "sync_folder", "write_atomic"]

_CHUNK_BYTES = 1 << 20


def write_atomic(path: Union[str, Path], data: Union[bytes, str], mode: int = 0o666) -> Path:
    """Write a file, or leave it exactly as it was.

    Args:
        path: The file.
        data: Content; str is written as UTF-8.
        mode: Mode of a new file, subject to the umask.

    Returns:
        The path.

    Raises:
        InputError: The disk is full or read-only, the folder is missing, or the user lacks a right.
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
    """A temporary path beside `path`, same suffix, that becomes `path` when the block ends well; else it is removed.

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


def check_room(folder: Union[str, Path], size_bytes: int) -> None:
    """Check that the folder's disk has enough room.

    Raises:
        InputError: It has less than `size_bytes`.
    """
    try:
        free = shutil.disk_usage(str(folder)).free
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({_reason(error)})") from error
    if free < size_bytes:
        raise InputError(f"{folder}: {free / 1e6:.1f} MB are free, and {size_bytes / 1e6:.1f} MB are needed: free some")


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
        raise InputError(f"{path}: cannot be read ({_reason(error)})") from error
    return digest.hexdigest()


def _beside(path: Path) -> Path:
    """A fresh name in the same folder: a rename is atomic only within one file system."""
    with _explained(path):
        if path.is_dir():
            raise IsADirectoryError(21, "is a folder")
        if not path.parent.is_dir():
            raise FileNotFoundError(2, f"the folder {path.parent} does not exist; make it first")
    # The random part: two processes may write the same file at the same time; the last rename wins, both whole.
    return path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}.tmp{path.suffix}")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn any OSError into one line that names the file that the user asked for, not the temporary one."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({_reason(error)})") from error


def _reason(error: OSError) -> str:
    return str(error.strerror or error).lower()


def sync_folder(folder: Path) -> None:
    """Write a folder to the disk: only then does a rename in it survive a power cut."""
    descriptor = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network and FUSE file systems refuse fsync on a folder; the rename itself has happened
    finally:
        os.close(descriptor)
