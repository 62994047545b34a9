"""A file system is changed as a whole or not at all: first beside the image, then in it.

`Overlay` is a sparse file with the metadata of the file system (e2image: some megabytes for many gigabytes), which
debugfs and the kernel change as if it were the file system itself. What then differs from the image is written to a
journal, both as it was and as it will be, and only then to the image. A run that fails or is killed before that has not
touched the image; one that is killed within it leaves the journal, from which the next gives the image back, byte for
byte.

Knows nothing of what is written, only bytes.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeprune_device.errors import InputError
from edgeprune_device.files import replacing
from edgeprune_device.printable import printable

from edgeprune.deploy.debugfs import Place, run

__all__ = ["Change", "Overlay", "apply", "read_journal", "undo", "write_journal"]

_CHANGE = struct.Struct("<QI")
_PAGE_BYTES = 4096
_RUN_BYTES = 1 << 20
_SECTOR_BYTES = 512  # a disk writes at least one of these whole


@dataclass(frozen=True)
class Change:
    """Bytes of the image before and after."""

    offset_bytes: int
    old: bytes
    new: bytes


class Overlay:
    """The copy at `path` of the file system at `image`, which must not change meanwhile."""

    def __init__(self, path: Path, image: Place):
        """InputError: e2image cannot copy it as it is."""
        self._image = image
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        done = run(
            "e2image", "-r", "-o", str(image.offset_bytes), f"/proc/self/fd/{image.descriptor}", str(path), place=image
        )
        if done.returncode:
            os.close(descriptor)
            said = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"])[-1]
            raise InputError(f"{image.what}: its metadata cannot be copied: {printable(said[:200])}")
        self.place = Place(descriptor, 0, image.what)
        self._copied = list(self._extents())
        if next(self.changes(), None) is not None:
            self.close()
            raise InputError(f"{image.what}: e2image does not give its metadata as they are")

    def changes(self) -> Iterator[Change]:
        """Where it differs from the image by now, in order."""
        image, here = self._image.descriptor, self.place.descriptor
        for begin, end in _united([*self._copied, *self._extents()]):
            for at in range(begin, end, _RUN_BYTES):
                size = min(_RUN_BYTES, end - at)
                old, new = os.pread(image, size, self._image.offset_bytes + at), os.pread(here, size, at)
                yield from _different(self._image.offset_bytes + at, old, new)

    def close(self) -> None:
        os.close(self.place.descriptor)

    def _extents(self) -> Iterator[tuple[int, int]]:
        """Where it is not a hole: (begin, end), in whole pages."""
        here, at = self.place.descriptor, 0
        total = os.fstat(here).st_size
        while at < total:
            try:
                begin = os.lseek(here, at, os.SEEK_DATA)
            except OSError:  # nothing but a hole to the end
                return
            at = os.lseek(here, begin, os.SEEK_HOLE)
            yield begin // _PAGE_BYTES * _PAGE_BYTES, min(-(-at // _PAGE_BYTES) * _PAGE_BYTES, total)


def write_journal(path: Path, changes: Iterator[Change]) -> None:
    """Whole, and on the disk before it returns."""
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        digest = hashlib.sha256()
        for change in changes:
            record = _CHANGE.pack(change.offset_bytes, len(change.old)) + change.old + change.new
            digest.update(record)
            stream.write(record)
        stream.write(_CHANGE.pack(0, 0) + digest.digest())
        stream.flush()
        os.fsync(stream.fileno())


def read_journal(path: Path) -> Iterator[Change]:
    """What `write_journal` wrote.

    Raises:
        InputError: it was damaged.
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
            yield Change(offset, old, new)
        if stream.read() != digest.digest():
            raise InputError(f"{path}: is damaged")


def apply(descriptor: int, path: Path) -> int:
    """Bring what the journal holds into the image, on the disk before it returns. The bytes that changed."""
    size = 0
    for change in read_journal(path):
        _write(descriptor, change.offset_bytes, change.new)
        size += len(change.new)
    os.fsync(descriptor)
    return size


def undo(descriptor: int, path: Path, what: str) -> None:
    """Give the image back as it was before `apply`, finished or not.

    Raises:
        InputError: the image was changed since by somebody else; it is left as it is.
    """
    for change in read_journal(path):
        now = os.pread(descriptor, len(change.old), change.offset_bytes)
        for at in range(0, len(change.old), _SECTOR_BYTES):
            sector = slice(at, at + _SECTOR_BYTES)
            if now[sector] not in (change.old[sector], change.new[sector]):
                raise InputError(
                    f"{what}: a deployment into it was killed, and it was changed since: it cannot be given back; take "
                    f"a fresh copy, or remove {path.parent} to keep it as it is"
                )
    for change in read_journal(path):
        _write(descriptor, change.offset_bytes, change.old)
    os.fsync(descriptor)


def _different(offset: int, old: bytes, new: bytes) -> Iterator[Change]:
    """In pages, those beside each other as one."""
    begin = None
    pages = range(0, max(len(old), len(new)), _PAGE_BYTES)
    for at in [*pages, None]:
        differs = at is not None and old[at : at + _PAGE_BYTES] != new[at : at + _PAGE_BYTES]
        if differs and begin is None:
            begin = at
        if not differs and begin is not None:
            end = at if at is not None else len(new)
            yield Change(offset + begin, old[begin:end], new[begin:end])
            begin = None


def _united(extents: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Each byte once, in order."""
    last = 0
    for begin, end in sorted(extents):
        begin = max(begin, last)
        if begin < end:
            yield begin, end
            last = end


def _write(descriptor: int, offset: int, data: bytes) -> None:
    while data:
        done = os.pwrite(descriptor, data, offset)
        data, offset = data[done:], offset + done
