"""gpt: the same partitions as sfdisk's, for every sector size."""

import io
import json
import os
import struct
import subprocess
import zlib

import pytest
from edgeprune_device.errors import InputError

from edgeprune.drones.deploy import gpt

from .... import fuzz
from ...drone_root import PATH
from .images import table


def read(data):
    return gpt.read(io.BytesIO(data), "disk.img")


@pytest.mark.needs("debugfs", "mke2fs", "sfdisk")
def test_the_partitions_equal_those_of_sfdisk(drone):
    done = subprocess.run(
        ["sfdisk", "--json", str(drone)], env={**os.environ, "PATH": PATH}, check=True, capture_output=True
    )
    table = json.loads(done.stdout)["partitiontable"]
    with open(drone, "rb") as stream:
        partitions = [(p.name, p.offset_bytes, p.size_bytes) for p in gpt.read(stream, "x")]
    unit = table["sectorsize"]
    assert partitions == [(p["name"], p["start"] * unit, p["size"] * unit) for p in table["partitions"]]
    assert len(partitions) == 4


def test_sectors_of_4096_bytes_are_understood():
    """Made by hand: sfdisk takes a file's sectors for 512 bytes."""
    assert [str(p) for p in read(table(4096))] == ["1 APP"]
    assert read(table(4096))[0].offset_bytes == 40 * 4096


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"table": 1 << 63}, "cut off within the GPT"),
        ({"table": (1 << 64) - 1}, "cut off within the GPT"),
        ({"table": 1 << 54}, "cut off within the GPT"),
        ({"here": 7}, "the GPT's header is damaged"),
    ],
)
def test_a_table_anywhere_is_refused_in_one_line(fields, says):
    with pytest.raises(InputError, match=f"^disk.img: ({says})"):
        read(table(**fields))


def test_a_name_reaches_no_terminal_raw():
    (partition,) = read(table(name="A\x1b[2J\n\u202eP"))
    assert partition.name == "A?[2J??P" and str(partition).isprintable()


@fuzz.counts(500, 50_000)
def test_any_table_is_read_or_refused_in_one_line(count):
    """The checksums of half of the mutants fit: a random change would never get past them."""

    def attempt(mutant):
        data = bytearray(mutant)
        if len(data) > 1024 and data[0] % 2 == 0:
            data[528:532] = bytes(4)
            at, entries = struct.unpack_from("<Q", data, 584)[0] * 512, struct.unpack_from("<II", data, 592)
            data[600:604] = struct.pack("<I", zlib.crc32(data[at : at + min(entries[0] * entries[1], 1 << 20)]))
            data[528:532] = struct.pack("<I", zlib.crc32(data[512 : 512 + struct.unpack_from("<I", data, 524)[0]]))
        for partition in read(bytes(data)) or ():
            assert str(partition).isprintable()

    result = fuzz.run(attempt, fuzz.of_bytes(table()[:4096].ljust(32 << 10, b"\0"), count))
    assert result["accepted"] and result["refused"]
