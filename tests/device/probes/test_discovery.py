"""Tests of discovery on recorded boards (tests/device/sysfs) and on invalid content."""

import subprocess
import sys

import pytest
import sysfs as boards
from edgeprune_device import probes
from edgeprune_device.probes import clocks, memory
from hypothesis import given, settings
from hypothesis import strategies as st

from .readings import ORINS, values

LIMITS = {
    "power": (0, 300000),
    "temperature": (-60, 150),
    "clock": (1e6, 20e9),
    "load": (0, 1),
    "event": (0, 1 << 40),
    "throttle": (0, 1000),
    "fan": (0, 50000),
    "memory": (0, 1 << 60),
}


@pytest.mark.parametrize("name", boards.NAMES)
def test_every_board_has_power_temperature_clocks_throttling_fan_and_memory(tmp_path, name):
    channels = probes.discover(boards.write(name, tmp_path))
    assert {channel.kind for channel in channels} >= {"power", "temperature", "clock", "event", "fan", "memory"}
    assert len({channel.key for channel in channels}) == len(channels)
    assert channels[0].kind == "power"  # read first, so that its time stamp is the most exact
    for channel in channels:
        value, (lowest, highest) = channel.read(), LIMITS[channel.kind]
        assert value is None or lowest <= value <= highest, channel


@pytest.mark.parametrize("name", ORINS)
def test_names_are_the_same_on_every_release(tmp_path, name):
    readings = values(boards.write(name, tmp_path))
    expected = {"temperature.cpu": 48.562, "temperature.gpu": 49.625, "temperature.tj": 49.312, "load.gpu": 0.0}
    expected.update({"clock.gpu": 305895000, "clock.cpu0": 729600000, "clock.cpu4": 729600000})
    expected.update({"fan.pwm": 0.4, "fan.rpm": 2140})
    expected.update({"event.oc1": 0, "event.oc2": 15, "event.oc3": 37, "throttle.gpu": 0, "throttle.hot-surface": 0})
    assert {key: readings[key] for key in expected} == expected
    # Off: -256 C on JetPack 5, EAGAIN (here: an empty file) on later ones. Never a figure.
    assert readings["temperature.cv0"] is None and readings["temperature.cv1"] is None
    assert "throttle.pwm-fan" not in readings  # a cooling device that does not throttle


def test_thor_has_its_own_names(tmp_path):
    readings = values(boards.write("jetson-agx-thor, JetPack 7", tmp_path))
    assert readings["power.VIN"] == 23104.0 and readings["power.VDD_GPU"] == 0 and readings["power.VIN_SYS_5V0"] == 6520
    assert readings["clock.gpu"] == 1575000000 and readings["clock.emc"] == 4266000000  # not the video engine's
    assert "clock.gpu1" not in readings and readings["temperature.gpu"] is None and readings["fan.rpm"] == 1786


def test_zones_and_cpufreq_of_any_linux_machine_are_found(tmp_path):
    for path, content in {
        "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp",
        "sys/class/thermal/thermal_zone0/temp": "61000",
        "sys/class/thermal/thermal_zone1/type": "acpitz",
        "sys/class/thermal/thermal_zone1/temp": "16800",
        "sys/class/thermal/thermal_zone2/type": "acpitz",
        "sys/class/thermal/thermal_zone2/temp": "17800",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000",
        "sys/devices/system/cpu/cpu10/cpufreq/scaling_cur_freq": "2400000",
        "sys/devices/system/cpu/cpuidle/current_driver": "none",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content + "\n")
    assert values(tmp_path) == {
        "clock.cpu0": 2400000000,
        "clock.cpu10": 2400000000,
        "temperature.x86_pkg_temp": 61.0,
        "temperature.acpitz": 16.8,
        "temperature.acpitz#2": 17.8,
    }


def test_empty_root_gives_no_channel_and_no_error(tmp_path):
    assert probes.discover(tmp_path) == [] and probes.discover(tmp_path / "missing") == []
    assert clocks.domains(tmp_path) == [] and memory.channels(tmp_path) == []


def test_environment_variable_sets_the_root(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_SYSROOT", str(boards.write("jetson-orin-nx, JetPack 6", tmp_path)))
    assert "power.VDD_IN" in {channel.key for channel in probes.discover()}


def test_sensor_that_disappears_is_none(tmp_path):
    name = "jetson-orin-nx, JetPack 6"
    channels = probes.discover(boards.write(name, tmp_path))
    volt, _ = boards.rail(name, "VDD_IN")
    (tmp_path / volt).unlink()
    assert next(channel for channel in channels if channel.name == "VDD_IN").read() is None


CONTENT = st.binary(max_size=40) | st.integers(-(10**20), 10**20).map(lambda n: f"{n}\n".encode()) | st.just(b"\0")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_file_content_gives_an_error_or_an_impossible_figure(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("fuzz")
    boards.write(data.draw(st.sampled_from(boards.NAMES)), root)
    paths = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    for path in data.draw(st.lists(st.sampled_from(paths), max_size=12, unique=True)):
        path.write_bytes(data.draw(CONTENT))
    for channel in probes.discover(root):
        value, (lowest, highest) = channel.read(), LIMITS[channel.kind]
        assert value is None or lowest <= value <= highest, channel
        assert channel.key.isprintable() and len(channel.key) <= 80


def test_probes_import_only_the_standard_library():
    code = (
        "import sys; before = set(sys.modules); import edgeprune_device.probes; "
        "from edgeprune_device.probes import summary; print(*{m.split('.')[0] for m in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert not {"numpy", "PIL", "nacl", "cv2"} & set(done.stdout.split())
