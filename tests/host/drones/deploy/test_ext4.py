"""ext4: any superblock is understood, refused, or none."""

import io
import struct

from edgeprune.drones.deploy import ext4

from .... import fuzz


def superblock():
    raw = bytearray(1024)
    for at, value in ((0x4, 8192), (0xC, 4000), (0x10, 2000), (0x18, 2), (0x60, 0x42), (0x64, 0x1)):
        struct.pack_into("<I", raw, at, value)
    struct.pack_into("<HH", raw, 0x38, 0xEF53, 1)
    raw[0x78:0x88] = b"root\x1b[2J".ljust(16, b"\0")
    return bytes(1024) + bytes(raw)


def test_a_label_reaches_no_terminal_raw():
    assert ext4.read(io.BytesIO(superblock()), 0).label == "root?[2J"


@fuzz.counts(500, 50_000)
def test_any_superblock_is_understood_or_none(count):
    def attempt(mutant):
        found = ext4.read(io.BytesIO(mutant), 0)
        if found:
            assert (found.obstacle() or "").isprintable() and found.label.isprintable()
            assert found.size_bytes >= 0 and found.usable_bytes >= 0

    assert fuzz.run(attempt, fuzz.of_bytes(superblock(), count))["accepted"]
