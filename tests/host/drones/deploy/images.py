"""Where the file system of the images lies, and partition tables made by hand."""

import struct
import zlib

#: The offset of the file system, and the bytes before and after it, which must never change.
OFFSET = 20 << 20
SIZE_MB = 32

_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")


def table(sector=512, name="APP", count=128, sectors=256, **fields):
    """A disk with one partition of the sectors 40 to 60; `fields` change its header, whose checksums fit."""
    entry = struct.pack("<16s16sQQQ72s", b"\1" * 16, b"\2" * 16, 40, 60, 0, name.encode("utf-16-le", "surrogatepass"))
    entries = entry.ljust(count * 128, b"\0")
    header = {
        "signature": b"EFI PART", "revision": 0x10000, "size": 92, "crc": 0, "zero": 0, "here": 1, "other": sectors - 1,
        "first": 34, "last": sectors - 34, "disk": b"\3" * 16, "table": 2, "count": count, "length": 128,
        "table_crc": zlib.crc32(entries), **fields,
    }  # fmt: skip
    header["crc"] = zlib.crc32(_HEADER.pack(*header.values()))
    raw = bytes(sector) + _HEADER.pack(*header.values()).ljust(sector, b"\0") + entries
    return raw.ljust(sectors * sector, b"\0")
