"""overlay: a damaged journal is not applied."""

import pytest
from edgeprune_device.errors import InputError

from edgeprune.drones.deploy import overlay


def test_a_damaged_journal_is_not_applied(tmp_path):
    path = tmp_path / "journal"
    overlay.write_journal(path, iter([overlay.BlockChange(512, b"a" * 512, b"b" * 512)]))
    assert list(overlay.read_journal(path)) == [overlay.BlockChange(512, b"a" * 512, b"b" * 512)]
    for position in range(0, path.stat().st_size, 97):
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        (tmp_path / "other").write_bytes(data)
        with pytest.raises((InputError, OverflowError, MemoryError)):
            list(overlay.read_journal(tmp_path / "other"))
