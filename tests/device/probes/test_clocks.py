import sysfs as boards

from .readings import values


def test_emc_is_read_if_its_file_is_readable(tmp_path):
    changes = {"sys/kernel/debug/bpmp/debug/clk/emc/rate": 2133000000}
    assert values(boards.write("jetson-orin-nx, JetPack 6", tmp_path / "root", changes))["clock.emc"] == 2133000000
    assert "clock.emc" not in values(boards.write("jetson-orin-nx, JetPack 6", tmp_path / "not root"))
