import pytest
from edgeprune_device.engine import memory


@pytest.mark.parametrize(
    "free_mb, integrated, workspace_mb, tactics_mb",
    [
        (300, True, 128, 256),  # hardly any memory is free: the minimum for a detector
        (2400, True, 816, 1632),  # a 4 GB board with its desktop
        (6000, True, 2048, 5232),  # 8 GB
        (13500, True, 2048, 12732),  # 16 GB
        (60000, True, 2048, 59232),  # 64 GB
        (2000, False, 1000, 2000),  # a graphics card with 4 GB, half of it in use
        (23000, False, 2048, 23000),
    ],
)
def test_scratch_memory_follows_from_the_free_memory(free_mb, integrated, workspace_mb, tactics_mb):
    pools = memory.pools(free_mb << 20, integrated)
    assert pools == {"WORKSPACE": workspace_mb << 20, "TACTIC_DRAM": tactics_mb << 20}
    assert integrated is False or free_mb < 1000 or pools["TACTIC_DRAM"] < free_mb << 20


def test_available_memory_is_read_from_meminfo():
    assert memory.available_bytes("MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:    2048 kB\n") == 2 << 20
    assert memory.available_bytes("MemTotal: 9 kB\n") is None
    assert memory.read_available() is None or memory.read_available() > 0
