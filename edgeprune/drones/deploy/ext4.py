"""The superblock of an ext4 file system: its free space, and whether the file system may be written to.

Only the features of L4T's and Debian's images, which were tested, are accepted; the error names any other.
Source: Documentation/filesystems/ext4 of Linux 6.1. The module does not read files.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from edgeprune_device.printable import printable

__all__ = ["Superblock", "read"]

_MAGIC = 0xEF53
_VALID, _ERRORS, _ORPHANS = 1, 2, 4
_NEEDS_RECOVERY, _EXTENTS, _64BIT = 0x4, 0x40, 0x80
#: filetype, extent, 64bit, flex_bg, metadata_csum_seed
_INCOMPAT = {0x2, 0x40, 0x80, 0x200, 0x2000}
#: sparse_super, large_file, huge_file, uninit_bg, dir_nlink, extra_isize, metadata_csum
_RO_COMPAT = {0x1, 0x2, 0x8, 0x10, 0x20, 0x40, 0x400}
_NAMES = {
    ("incompat", 0x1): "compression", ("incompat", 0x8): "journal_dev", ("incompat", 0x10): "meta_bg",
    ("incompat", 0x100): "mmp", ("incompat", 0x400): "ea_inode", ("incompat", 0x1000): "dirdata",
    ("incompat", 0x4000): "large_dir", ("incompat", 0x8000): "inline_data", ("incompat", 0x10000): "encrypt",
    ("incompat", 0x20000): "casefold", ("ro_compat", 0x80): "has_snapshot", ("ro_compat", 0x100): "quota",
    ("ro_compat", 0x200): "bigalloc", ("ro_compat", 0x800): "replica", ("ro_compat", 0x1000): "read-only",
    ("ro_compat", 0x2000): "project", ("ro_compat", 0x8000): "verity", ("ro_compat", 0x10000): "orphan_present",
}  # fmt: skip


@dataclass(frozen=True)
class Superblock:
    """The fields of a superblock.

    Attributes:
        block_bytes: The size of a block.
        blocks: The number of blocks.
        free_blocks: The number of free blocks.
        reserved_blocks: The number of blocks reserved for root.
        free_inodes: The number of free inodes.
        state: Bits: 1 valid, 2 errors, 4 orphans are being recovered.
        errors: The count of errors.
        orphan: The first orphaned inode, 0 for none.
        incompat: Bits of the incompatible features.
        ro_compat: Bits of the features that forbid writing if they are not known.
        label: The name of the file system.
    """

    block_bytes: int
    blocks: int
    free_blocks: int
    reserved_blocks: int
    free_inodes: int
    state: int
    errors: int
    orphan: int
    incompat: int
    ro_compat: int
    label: str

    @property
    def size_bytes(self) -> int:
        """The size of the file system."""
        return self.blocks * self.block_bytes

    @property
    def usable_bytes(self) -> int:
        """The free space that is not reserved for root."""
        return max(self.free_blocks - self.reserved_blocks, 0) * self.block_bytes

    def obstacle(self) -> str | None:
        """The reason why the file system must not be written to, with advice; None if it may be written to."""
        repair = "start the drone once and shut it down cleanly, or repair a copy with e2fsck -f"
        if self.incompat & _NEEDS_RECOVERY:
            return f"the journal is not replayed (needs_recovery: not unmounted cleanly, or in use); {repair}"
        if self.state & _ERRORS or self.errors:
            return f"the superblock records errors; {repair}"
        if not self.state & _VALID or self.state & _ORPHANS or self.orphan:
            return f"not unmounted cleanly, or in use; {repair}"
        if not self.incompat & _EXTENTS:
            return (
                "unsupported file system (found ext2 or ext3, expected ext4); mount the image and deploy to the folder"
            )
        unknown = [
            _NAMES.get((kind, bit), f"{kind} {bit:#x}")
            for kind, bits, known in (
                ("incompat", self.incompat, _INCOMPAT | {_NEEDS_RECOVERY}),
                ("ro_compat", self.ro_compat, _RO_COMPAT),
            )
            for bit in (1 << n for n in range(32))
            if bits & bit and bit not in known
        ]
        if unknown:
            return f"unsupported features ({', '.join(unknown)}); mount the image and deploy to the folder"
        return None


def read(stream: BinaryIO, offset: int) -> Superblock | None:
    """The superblock of the file system at `offset`, bytes; None if it is not ext2, ext3 or ext4."""
    stream.seek(offset + 1024)
    raw = stream.read(1024)
    if len(raw) < 1024 or struct.unpack_from("<H", raw, 0x38)[0] != _MAGIC:
        return None

    def u32(at: int) -> int:
        return int.from_bytes(raw[at : at + 4], "little")

    def high(at: int) -> int:
        return u32(at) << 32 if incompat & _64BIT else 0

    incompat = u32(0x60)
    return Superblock(
        block_bytes=1024 << min(u32(0x18), 6),
        blocks=u32(0x4) | high(0x150),
        reserved_blocks=u32(0x8) | high(0x154),
        free_blocks=u32(0xC) | high(0x158),
        free_inodes=u32(0x10),
        state=u32(0x3A) & 0xFFFF,
        errors=u32(0x194),
        orphan=u32(0xE8),
        incompat=incompat,
        ro_compat=u32(0x64),
        label=printable(raw[0x78:0x88].split(b"\0")[0].decode("utf-8", "replace")),
    )
