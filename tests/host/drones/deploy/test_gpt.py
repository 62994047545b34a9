"""gpt: the partitions that sfdisk sees, whatever the sector."""

import json
import os
import struct
import subprocess
import zlib

import pytest

from edgeprune.drones.deploy import gpt

from ...drone_root import PATH

pytestmark = pytest.mark.needs("debugfs", "mke2fs", "sfdisk")


def test_the_partitions_are_those_that_sfdisk_sees(drone):
    done = subprocess.run(
        ["sfdisk", "--json", str(drone)], env={**os.environ, "PATH": PATH}, check=True, capture_output=True
    )
    table = json.loads(done.stdout)["partitiontable"]
    with open(drone, "rb") as stream:
        found = [(p.name, p.offset_bytes, p.size_bytes) for p in gpt.read(stream, "x")]
    unit = table["sectorsize"]
    assert found == [(p["name"], p["start"] * unit, p["size"] * unit) for p in table["partitions"]]
    assert len(found) == 4


def test_sectors_of_4096_bytes_are_understood(tmp_path):
    """Made by hand: sfdisk takes a file's sectors for 512 bytes."""
    sector = 4096
    entry = struct.pack("<16s16sQQQ72s", b"\1" * 16, b"\2" * 16, 8, 11, 0, "APP".encode("utf-16-le"))
    table = entry.ljust(128 * 128, b"\0")
    fields = [b"EFI PART", 0x10000, 92, 0, 0, 1, 15, 6, 14, b"\3" * 16, 2, 128, 128, zlib.crc32(table)]
    pack = struct.Struct("<8sIIIIQQQQ16sQIII").pack
    fields[3] = zlib.crc32(pack(*fields))
    path = tmp_path / "4k.img"
    path.write_bytes(bytes(sector) + pack(*fields).ljust(sector, b"\0") + table + bytes(10 * sector))
    with open(path, "rb") as stream:
        assert [str(p) for p in gpt.read(stream, "x")] == ["1 APP"]
        assert gpt.read(stream, "x")[0].offset_bytes == 8 * sector
