"""Discovery and single readings, on recorded boards (tests/device/sysfs) and on what no board should say."""

import os
import subprocess
import sys

import pytest
import sysfs as boards
from edgeprune_device import probes
from edgeprune_device.probes import clocks, memory, power, sysfs
from hypothesis import given, settings
from hypothesis import strategies as st

ORINS = [name for name in boards.NAMES if "orin" in name]
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


def values(root):
    return {channel.key: channel.read() for channel in probes.discover(root)}


@pytest.mark.parametrize("name", boards.NAMES)
def test_every_board_tells_power_heat_clocks_throttling_fan_and_memory(tmp_path, name):
    channels = probes.discover(boards.write(name, tmp_path))
    assert {channel.kind for channel in channels} >= {"power", "temperature", "clock", "event", "fan", "memory"}
    assert len({channel.key for channel in channels}) == len(channels)
    assert channels[0].kind == "power"  # read first, so that its time stamp is the nearest
    for channel in channels:
        value, (lowest, highest) = channel.read(), LIMITS[channel.kind]
        assert value is None or lowest <= value <= highest, channel


@pytest.mark.parametrize("name", ORINS)
def test_the_same_names_on_every_release(tmp_path, name):
    found = values(boards.write(name, tmp_path))
    expected = {"temperature.cpu": 48.562, "temperature.gpu": 49.625, "temperature.tj": 49.312, "load.gpu": 0.0}
    expected.update({"clock.gpu": 305895000, "clock.cpu0": 729600000, "clock.cpu4": 729600000})
    expected.update({"fan.pwm": 0.4, "fan.rpm": 2140})
    expected.update({"event.oc1": 0, "event.oc2": 15, "event.oc3": 37, "throttle.gpu": 0, "throttle.hot-surface": 0})
    assert {key: found[key] for key in expected} == expected
    # Off: -256 C on JetPack 5, EAGAIN (here: a file that says nothing) on later ones. Never a figure.
    assert found["temperature.cv0"] is None and found["temperature.cv1"] is None
    assert "throttle.pwm-fan" not in found  # a cooling device, but not one that slows anything down


@pytest.mark.parametrize("name", [name for name in ORINS if "agx" not in name])
def test_orin_nx_and_nano_power_is_voltage_times_current(tmp_path, name):
    found = values(boards.write(name, tmp_path))
    rails = {key: value for key, value in found.items() if key.startswith("power.")}
    assert rails == {"power.VDD_IN": 5250.0, "power.VDD_CPU_GPU_CV": 510.0, "power.VDD_SOC": 2720.0}  # and no in7


@pytest.mark.parametrize("name", [name for name in ORINS if "agx" in name])
def test_agx_orin_has_four_rails_and_nc_is_none(tmp_path, name):
    found = values(boards.write(name, tmp_path))
    rails = {key: round(value) for key, value in found.items() if key.startswith("power.")}
    expected = {"VDD_GPU_SOC": 3363, "VDD_CPU_CV": 478, "VIN_SYS_5V0": 4869, "VDDQ_VDD2_1V8AO": 397}
    assert rails == {f"power.{rail}": value for rail, value in expected.items()}


def test_thor(tmp_path):
    found = values(boards.write("jetson-agx-thor, JetPack 7", tmp_path))
    assert found["power.VIN"] == 23104.0 and found["power.VDD_GPU"] == 0 and found["power.VIN_SYS_5V0"] == 6520
    assert found["clock.gpu"] == 1575000000 and found["clock.emc"] == 4266000000  # not the video engine's
    assert "clock.gpu1" not in found and found["temperature.gpu"] is None and found["fan.rpm"] == 1786


@pytest.mark.parametrize(
    ("names", "source", "whole", "rails"),
    [
        (["VDD_CPU_GPU_CV", "VDD_IN", "VDD_SOC"], "VDD_IN, the whole module", True, ("VDD_IN",)),
        (
            ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"],
            "sum of rails VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 (VDDQ_VDD2_1V8AO lies inside VIN_SYS_5V0; not added "
            "again)",
            False,
            ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
        ),
        (
            ["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"],
            "sum of rails VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0",
            False,
            ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
        ),
        (
            ["VDD_GPU", "VIN", "VIN_SYS_5V0"],
            "VIN, the whole board, its carrier included",
            True,
            ("VIN",),
        ),
        (["VDD_GPU_SOC", "MY_12V"], None, False, ()),
    ],
)
def test_what_the_whole_power_is_made_of(names, source, whole, rails):
    found = power.total(names)
    assert (found.whole_module, found.rails) == (whole, rails)
    assert found.source == source or (source is None and "alone" in found.source)


def test_no_rails_no_total():
    assert power.total([]) is None


@pytest.mark.parametrize(
    ("volt", "ampere", "milliwatts"),
    [
        ("5000", "1000", 5000.0),
        ("5000", "-8", None),  # VDD_IN cannot be 0 on a board that answers
        ("0", "0", None),
        ("5000", "", None),
        ("5000", "99999", None),
        ("-5000", "1000", None),
        ("32760", "82000", None),  # each in its range, but 2.7 kW
        ("5000 mV", "1000", None),
        ("5e3", "1000", None),
        ("٥٠٠٠", "1000", None),
    ],
)
def test_a_power_that_cannot_be_is_none(tmp_path, volt, ampere, milliwatts):
    name = "jetson-orin-nx, JetPack 6"
    volt_path, ampere_path = boards.rail(name, "VDD_IN")
    found = values(boards.write(name, tmp_path, {volt_path: volt, ampere_path: ampere}))
    assert found["power.VDD_IN"] == milliwatts and found["power.VDD_SOC"] == 2720


def test_a_rail_that_is_off_draws_nothing(tmp_path):
    name = "jetson-orin-nx, JetPack 6"
    _, ampere_path = boards.rail(name, "VDD_CPU_GPU_CV")
    assert values(boards.write(name, tmp_path, {ampere_path: -8}))["power.VDD_CPU_GPU_CV"] == 0


def test_a_rail_that_is_switched_off_or_has_no_label_is_no_channel(tmp_path):
    name = "jetson-orin-nx, JetPack 6"
    volt, _ = boards.rail(name, "VDD_SOC")
    other, _ = boards.rail(name, "VDD_CPU_GPU_CV")
    changes = {volt.replace("_input", "_enable"): 0, other.replace("_input", "_label"): None}
    found = values(boards.write(name, tmp_path, changes))
    assert [key for key in found if key.startswith("power.")] == ["power.VDD_IN"]


def test_the_throttle_counters_of_the_platform_are_read(tmp_path):
    path = "sys/devices/platform/tj-throttle-alert/thermal_trip_event"
    assert values(boards.write("jetson-orin-nx, JetPack 6", tmp_path, {path: 4}))["event.tj"] == 4


def test_emc_is_read_where_root_sees_it(tmp_path):
    changes = {"sys/kernel/debug/bpmp/debug/clk/emc/rate": 2133000000}
    assert values(boards.write("jetson-orin-nx, JetPack 6", tmp_path / "root", changes))["clock.emc"] == 2133000000
    assert "clock.emc" not in values(boards.write("jetson-orin-nx, JetPack 6", tmp_path / "not root"))


def test_any_linux_machine_has_zones_and_cpufreq(tmp_path):
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


def test_nothing_there_is_no_channel_and_no_error(tmp_path):
    assert probes.discover(tmp_path) == [] and probes.discover(tmp_path / "missing") == []
    assert clocks.domains(tmp_path) == [] and memory.channels(tmp_path) == []


def test_the_environment_moves_the_root(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_SYSROOT", str(boards.write("jetson-orin-nx, JetPack 6", tmp_path)))
    assert "power.VDD_IN" in {channel.key for channel in probes.discover()}


def test_what_lies_in_place_of_a_file_neither_hangs_nor_counts(tmp_path):
    os.mkfifo(str(tmp_path / "pipe"))
    os.symlink("/dev/zero", str(tmp_path / "endless"))
    os.symlink("loop", str(tmp_path / "loop"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "long").write_text("1" * 100000)
    for name in ("pipe", "endless", "loop", "folder", "empty", "binary", "long", "missing", "nul\0byte"):
        assert sysfs.number(tmp_path / name, 0, 1 << 70) is None
        assert sysfs.line(tmp_path / name) is None


def test_a_sensor_that_goes_away_is_none(tmp_path):
    name = "jetson-orin-nx, JetPack 6"
    channels = probes.discover(boards.write(name, tmp_path))
    volt, _ = boards.rail(name, "VDD_IN")
    (tmp_path / volt).unlink()
    assert next(channel for channel in channels if channel.name == "VDD_IN").read() is None


def test_names_from_a_device_tree_are_cleaned():
    assert sysfs.clean("VDD IN\x1b[31m/\n") == "VDD_IN_31m"
    assert sysfs.clean("\u202e") == "unnamed" and len(sysfs.clean("x" * 500)) == 48


def test_parse_meminfo():
    text = "MemTotal:       16 kB\nMemAvailable:    4 kB\nSwapTotal: 8 kB\nSwapFree: 2 kB\n"
    assert memory.parse_meminfo(text) == {"total": 16384, "available": 4096, "swap_total": 8192, "swap_used": 6144}
    nothing = {"total": None, "available": None, "swap_total": None, "swap_used": None}
    assert memory.parse_meminfo("") == memory.parse_meminfo("MemTotal: -1 kB\nSwapFree: 2 MB") == nothing
    assert memory.parse_meminfo("MemTotal: 4 kB\nMemAvailable: 8 kB")["available"] is None


CONTENT = st.binary(max_size=40) | st.integers(-(10**20), 10**20).map(lambda n: f"{n}\n".encode()) | st.just(b"\0")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_content_of_any_file_gives_an_error_or_a_figure_that_cannot_be(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("fuzz")
    boards.write(data.draw(st.sampled_from(boards.NAMES)), root)
    paths = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    for path in data.draw(st.lists(st.sampled_from(paths), max_size=12, unique=True)):
        path.write_bytes(data.draw(CONTENT))
    for channel in probes.discover(root):
        value, (lowest, highest) = channel.read(), LIMITS[channel.kind]
        assert value is None or lowest <= value <= highest, channel
        assert channel.key.isprintable() and len(channel.key) <= 80


def test_the_probes_import_nothing_but_pythons_own_library():
    code = (
        "import sys; before = set(sys.modules); import edgeprune_device.probes; "
        "from edgeprune_device.probes import summary; print(*{m.split('.')[0] for m in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert not {"numpy", "PIL", "nacl", "cv2"} & set(done.stdout.split())
