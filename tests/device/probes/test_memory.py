from edgeprune_device.probes import memory


def test_meminfo_is_parsed_and_invalid_values_are_none():
    text = "MemTotal:       16 kB\nMemAvailable:    4 kB\nSwapTotal: 8 kB\nSwapFree: 2 kB\n"
    assert memory.parse_meminfo(text) == {"total": 16384, "available": 4096, "swap_total": 8192, "swap_used": 6144}
    nothing = {"total": None, "available": None, "swap_total": None, "swap_used": None}
    assert memory.parse_meminfo("") == memory.parse_meminfo("MemTotal: -1 kB\nSwapFree: 2 MB") == nothing
    assert memory.parse_meminfo("MemTotal: 4 kB\nMemAvailable: 8 kB")["available"] is None
