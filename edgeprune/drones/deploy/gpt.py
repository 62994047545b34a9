"""The partition table of a disk image: GPT, read strictly and never written.

The module knows nothing of the content of partitions. Source: UEFI Specification 2.10, section 5.3.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

from edgeprune_device.errors import InputError
from edgeprune_device.printable import printable

__all__ = ["Partition", "read"]

_SIGNATURE = b"EFI PART"
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_MOST_ENTRIES = 1024
_SECTORS_BYTES = (512, 4096)


@dataclass(frozen=True)
class Partition:
    """A partition.

    Example: Partition(1, "APP", 20971520, 30064771072).

    Attributes:
        number: From 1.
        name: As in the table, without control characters; may be empty.
        offset_bytes: Its beginning in the image.
        size_bytes: Its size.
    """

    number: int
    name: str
    offset_bytes: int
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.number} {self.name or 'without a name'}"


def read(stream: BinaryIO, what: str) -> list[Partition] | None:
    """The partitions of an open image, in the order of the table; None if it has no GPT.

    Args:
        stream: The image.
        what: Begins the message of an error.

    Raises:
        InputError: The table is damaged, or does not fit the file.
    """
    total = stream.seek(0, os.SEEK_END)
    for sector in _SECTORS_BYTES:
        header = _at(stream, sector, 512)
        if header[:8] == _SIGNATURE:
            return _partitions(stream, what, header, sector, total)
    return None


def _partitions(stream: BinaryIO, what: str, header: bytes, sector: int, total: int) -> list[Partition]:
    if len(header) < _HEADER.size:
        raise InputError(f"{what}: cut off within the GPT; copy the image again")
    (_, revision, size, crc, _, here, _, first, last, _, table, count, length, table_crc) = _HEADER.unpack_from(header)
    if revision != 0x10000 or not _HEADER.size <= size <= 512:
        raise InputError(f"{what}: unsupported GPT revision (found {revision:#x}, expected 0x10000)")
    if zlib.crc32(header[:16] + bytes(4) + header[20:size]) != crc or here != 1:
        raise InputError(f"{what}: the GPT's header is damaged; sgdisk --verify shows more")
    if not 0 < count <= _MOST_ENTRIES or length % 128 or not 128 <= length <= 4096:
        raise InputError(f"{what}: unsupported GPT table (found {count} entries of {length} bytes)")
    entries = b"" if table * sector > total else _at(stream, table * sector, count * length)
    if len(entries) != count * length:
        raise InputError(f"{what}: cut off within the GPT; copy the image again")
    if zlib.crc32(entries) != table_crc:
        raise InputError(f"{what}: the GPT's entries are damaged; sgdisk --verify shows more")
    partitions = []
    for number in range(1, count + 1):
        kind, _, begin, end, _, name = _ENTRY.unpack_from(entries, (number - 1) * length)
        if kind == bytes(16):
            continue
        text = printable(name.decode("utf-16-le", "replace").split("\0")[0])
        partition = Partition(number, text, begin * sector, (end + 1 - begin) * sector)
        if not first <= begin <= end <= last:
            raise InputError(f"{what}: partition {partition} is outside the usable blocks of the GPT")
        if (end + 1) * sector > total:
            ends = (end + 1) * sector
            raise InputError(
                f"{what}: cut off (partition {partition} ends at byte {ends}, the file at byte {total}); copy the "
                "image again"
            )
        partitions.append(partition)
    ordered = sorted(partitions, key=lambda partition: partition.offset_bytes)
    for one, next_one in pairwise(ordered):
        if one.offset_bytes + one.size_bytes > next_one.offset_bytes:
            raise InputError(f"{what}: the partitions {one} and {next_one} overlap")
    return partitions


def _at(stream: BinaryIO, offset: int, size: int) -> bytes:
    stream.seek(offset)
    return stream.read(size)
