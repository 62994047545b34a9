import sysfs as boards

from .readings import values


def test_throttle_counters_of_the_platform_are_read(tmp_path):
    path = "sys/devices/platform/tj-throttle-alert/thermal_trip_event"
    assert values(boards.write("jetson-orin-nx, JetPack 6", tmp_path, {path: 4}))["event.tj"] == 4
