"""Changes a file system completely or not at all: first in a copy beside the image, then in the image.

`Overlay` is a sparse file with the metadata of the file system (e2image: some megabytes for many gigabytes). debugfs
and the kernel change it as if it were the file system itself. The changed blocks are written to a journal, with their
old and their new content, and only then to the image. A run that fails or is killed before that step leaves the image
unchanged. A run that is killed during it leaves the journal, from which the next run restores the image exactly.

The overlay does not hold the contents of existing files, so a hole in it does not mean an unchanged block. A block was
changed if it differs from a second copy of the overlay, or if it belongs to a written file.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from edgeprune_device.errors import InputError
from edgeprune_device.files import replacing
from edgeprune_device.printable import printable

from edgeprune.drones.deploy.debugfs import Place, run

__all__ = ["BlockChange", "Overlay", "apply", "read_journal", "undo", "write_journal"]

_CHANGE = struct.Struct("<QI")
_RUN_BYTES = 1 << 20
_SECTOR_BYTES = 512  # a disk writes a sector completely or not at all


@dataclass(frozen=True)
class BlockChange:
    """A range of the image, before and after.

    Attributes:
        offset_bytes: Its beginning in the image.
        old: Its old content.
        new: Its new content.
    """

    offset_bytes: int
    old: bytes
    new: bytes


class Overlay:
    """A copy of the metadata of the file system at `image`, which must not change while it is in use.

    Args:
        folder: Holds the copy.
        image: The file system.
        block_bytes: The size of its blocks.

    Raises:
        InputError: e2image cannot copy the metadata.

    Attributes:
        place: The copy, as a file system.
    """

    def __init__(self, folder: Path, image: Place, block_bytes: int):
        """Copy the metadata."""
        self._image, self._block_bytes = image, block_bytes
        path = folder / "overlay"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._before = os.open(folder / "before", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self.place = Place(descriptor, 0, image.what)
        done = run(
            "e2image", "-r", "-o", str(image.offset_bytes), f"/proc/self/fd/{image.descriptor}", str(path), place=image
        )
        if done.returncode:
            self.close()
            reason = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"])[-1]
            raise InputError(f"{image.what}: e2image cannot copy the metadata ({printable(reason[:200])})")
        os.ftruncate(self._before, os.fstat(descriptor).st_size)
        for begin, end in _data(descriptor):
            for at in range(begin, end, _RUN_BYTES):
                _write(self._before, at, os.pread(descriptor, min(_RUN_BYTES, end - at), at))

    def changes(self, held: Iterable[int]) -> Iterator[BlockChange]:
        """The changes to write to the image, in order.

        Args:
            held: The blocks that hold the contents of the new files.
        """
        size = self._block_bytes
        blocks = sorted(set(held) | set(self._changed()))
        for _, run_ in groupby(enumerate(blocks), key=lambda item: (item[1] - item[0], item[0] * size // _RUN_BYTES)):
            numbers = [block for _, block in run_]
            at, length = numbers[0] * size, len(numbers) * size
            old = os.pread(self._image.descriptor, length, self._image.offset_bytes + at)
            new = os.pread(self.place.descriptor, length, at)
            if old != new:
                yield BlockChange(self._image.offset_bytes + at, old, new)

    def close(self) -> None:
        """Close the copy."""
        os.close(self.place.descriptor)
        os.close(self._before)

    def _changed(self) -> Iterator[int]:
        """The blocks in which the overlay differs from its second copy."""
        size = self._block_bytes
        now, before = self.place.descriptor, self._before
        for begin, end in _united([*_data(now), *_data(before)], size):
            for at in range(begin, end, _RUN_BYTES):
                length = min(_RUN_BYTES, end - at)
                old, new = os.pread(before, length, at), os.pread(now, length, at)
                if old != new:
                    for within in range(0, length, size):
                        if old[within : within + size] != new[within : within + size]:
                            yield (at + within) // size


def write_journal(path: Path, changes: Iterator[BlockChange]) -> None:
    """Write the changes to a journal. On return it is complete and on the disk."""
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        digest = hashlib.sha256()
        for change in changes:
            record = _CHANGE.pack(change.offset_bytes, len(change.old)) + change.old + change.new
            digest.update(record)
            stream.write(record)
        stream.write(_CHANGE.pack(0, 0) + digest.digest())
        stream.flush()
        os.fsync(stream.fileno())


def read_journal(path: Path) -> Iterator[BlockChange]:
    """The changes in a journal.

    Raises:
        InputError: The journal is damaged.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while True:
            head = stream.read(_CHANGE.size)
            offset, size = _CHANGE.unpack(head) if len(head) == _CHANGE.size else (0, 0)
            if size == 0:
                break
            old, new = stream.read(size), stream.read(size)
            digest.update(head + old + new)
            yield BlockChange(offset, old, new)
        if stream.read() != digest.digest():
            raise InputError(
                f"{path}: damaged journal, so the image cannot be restored; take a fresh copy of the image"
            )


def apply(descriptor: int, path: Path) -> int:
    """Write the new content of a journal's changes into the image. On return it is on the disk.

    Args:
        descriptor: The open image.
        path: The journal.

    Returns:
        The number of bytes written.
    """
    size = 0
    for change in read_journal(path):
        _write(descriptor, change.offset_bytes, change.new)
        size += len(change.new)
    os.fsync(descriptor)
    return size


def undo(descriptor: int, path: Path, what: str) -> None:
    """Restore the image's content from before `apply`, which may be unfinished.

    Args:
        descriptor: The open image.
        path: The journal.
        what: Begins the message of an error.

    Raises:
        InputError: Another program has changed the image since; nothing is restored.
    """
    for change in read_journal(path):
        now = os.pread(descriptor, len(change.old), change.offset_bytes)
        for at in range(0, len(change.old), _SECTOR_BYTES):
            sector = slice(at, at + _SECTOR_BYTES)
            if now[sector] not in (change.old[sector], change.new[sector]):
                raise InputError(
                    f"{what}: cannot be restored after a killed deployment, because another program has changed it "
                    f"since; take a fresh copy, or remove {path.parent} to keep it"
                )
    for change in read_journal(path):
        _write(descriptor, change.offset_bytes, change.old)
    os.fsync(descriptor)


def _data(descriptor: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of the parts of a file that are not holes."""
    at, total = 0, os.fstat(descriptor).st_size
    while at < total:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # nothing but a hole to the end
            return
        at = os.lseek(descriptor, begin, os.SEEK_HOLE)
        yield begin, at


def _united(extents: list[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """The extents without overlaps, in order, and in whole blocks."""
    last = 0
    for begin, end in sorted(extents):
        begin, end = max(begin // size * size, last), -(-end // size) * size
        if begin < end:
            yield begin, end
            last = end


def _write(descriptor: int, offset: int, data: bytes) -> None:
    while data:
        done = os.pwrite(descriptor, data, offset)
        data, offset = data[done:], offset + done
