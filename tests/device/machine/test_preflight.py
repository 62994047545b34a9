import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sysfs as boards
from edgeprune_device import schema
from edgeprune_device.machine import preflight
from edgeprune_device.machine.preflight import Preflight, parse_nvpmodel
from hypothesis import given, settings
from hypothesis import strategies as st

NX = "jetson-orin-nx, JetPack 6"
GPU = "sys/devices/platform/bus@0/17000000.gpu/devfreq/17000000.gpu"
CPUFREQ = "sys/devices/system/cpu/cpufreq"
EMC = "sys/kernel/debug/bpmp/debug/clk/emc"


def fits(data):
    root = schema.load("report")
    schema._check(root["$defs"]["preflight"], json.loads(json.dumps(data)), "preflight", root)
    return True


@pytest.fixture(autouse=True)
def tools(tmp_path, monkeypatch):
    """PATH is a folder that contains only the fake tools of the test."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def put(folder, name, body):
    """A fake tool, written in Python."""
    (folder / name).write_text(f"#!{sys.executable}\nimport sys, time\n{body}")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("name", boards.NAMES)
def test_every_recorded_board_is_read(tmp_path, name):
    state = preflight.read(boards.write(name, tmp_path / "root"))
    assert state.clocks["gpu"]["cur_hz"] and state.clocks["cpu0"]["governor"] == "schedutil"
    assert state.clocks_locked is False and "clocks are not locked (gpu 306 to" in "".join(state.warnings())
    assert state.memory["available_bytes"] and state.fan["rpm"] and state.throttled == {}
    assert fits(state.to_json()) and Preflight.from_json(json.loads(json.dumps(state.to_json()))) == state
    assert all(text.isprintable() for text in [*state.described().values(), *state.warnings()])


def test_board_that_is_ready_gives_no_warnings(tmp_path, tools):
    put(tools, "nvpmodel", "print('NV Power Mode: MAXN_SUPER\\n2')")
    held = {f"{GPU}/{which}_freq": 918000000 for which in ("cur", "min", "max")}
    held.update({f"{CPUFREQ}/policy{p}/scaling_{w}_freq": 1984000 for p in (0, 4) for w in ("cur", "min", "max")})
    held.update({f"{EMC}/rate": 3199000000, f"{EMC}/min_rate": 204000000, f"{EMC}/mrq_rate_locked": 1})
    state = preflight.read(boards.write(NX, tmp_path / "root", held))
    assert state.power_mode == {"name": "MAXN_SUPER", "id": 2} and state.clocks_locked is True
    assert state.warnings() == [] and state.clocks["emc"]["cur_hz"] == 3199000000
    assert state.described()["power mode"] == "MAXN_SUPER" and "locked" in state.described()["clock gpu"]


def test_conditions_that_distort_a_benchmark_give_warnings(tmp_path, tools):
    put(tools, "nvpmodel", "print('NV Power Mode: 15W\\n0')")
    changes = {
        "sys/devices/virtual/thermal/cooling_device0/cur_state": 1,
        "sys/devices/system/cpu/online": "0-3",
        "proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 200000 kB\nSwapTotal: 4096 kB\nSwapFree: 0 kB",
    }
    root = boards.write(NX, tmp_path / "root", changes)
    state = preflight.read(root)
    text = "\n".join([*state.notes(), *state.warnings()])
    assert "MAXN" not in "".join(state.warnings())  # a deliberate setting is not a warning
    for part in (
        "the power mode is 15W (not MAXN)",
        "clocks are not locked (gpu 306 to 918 MHz, cpu0 730 to 1984 MHz, cpu4 730 to 1984 MHz)",
        "only cores 0-3 of 0-7 are online",
        "cpu is throttled (state 1)",
        "only 205 MB of memory are free",
    ):
        assert part in text


def test_other_users_of_the_gpu_are_named(tmp_path):
    root = boards.write(NX, tmp_path / "root")
    for pid, name, target in (
        (812, "gnome-shell", "/dev/nvmap"),
        (900, "bash", "/dev/pts/0"),
        (901, "python3", "/dev/nvhost-ctrl-gpu"),
        (902, "other", "/dev/nvidiactl"),
        (os.getpid(), "me", "/dev/nvmap"),
    ):
        (root / f"proc/{pid}/fd").mkdir(parents=True)
        (root / f"proc/{pid}/comm").write_text(f"{name}\n")
        os.symlink(target, str(root / f"proc/{pid}/fd/5"))
        os.symlink("/dev/nvmap" if pid == 812 else "/dev/null", str(root / f"proc/{pid}/fd/6"))
    (root / "proc/903").mkdir()  # an ended process without an fd folder
    state = preflight.read(root)
    users = [(user["pid"], user["command"]) for user in state.gpu_users]
    assert users == [(812, "gnome-shell"), (901, "python3"), (902, "other")] and state.gpu_users_complete is True
    assert fits(state.to_json())
    assert "gnome-shell (812), python3 (901), other (902)" in state.warnings()[-1]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_list_of_gpu_users_is_incomplete_without_root():
    code = (
        "import os; from edgeprune_device.machine import preflight; os.setuid(65534); "
        "print(preflight.read().gpu_users_complete)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_machine_without_information_has_an_empty_state(tmp_path):
    state = preflight.read(tmp_path / "nothing")
    assert state.warnings() == [] and state.clocks_locked is None and state.fan is None and state.clocks == {}
    assert fits(state.to_json())


@pytest.mark.parametrize(
    ("output", "mode"),
    [
        ("NV Power Mode: MAXN_SUPER\n2\n", {"name": "MAXN_SUPER", "id": 2}),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_30W\n2\n", {"name": "MODE_30W", "id": 2}),
        ("NVPM VERB: Current mode: NV Power Mode: 25W\n1\n", {"name": "25W", "id": 1}),
        ("NV Power Mode: 15W", {"name": "15W", "id": None}),
        ("NV Power Mode: \x1b[31mMAXN\n0\n", None),
        ("NV Power Mode:\n0\n", None),
        ("NVPM ERROR: failed to read PARAM CPU_ONLINE\n", None),
        ("", None),
    ],
)
def test_output_of_nvpmodel_is_parsed(output, mode):
    assert parse_nvpmodel(output) == mode


@given(st.text(max_size=100), st.text(max_size=100))
def test_any_output_of_nvpmodel_fits_the_report(name, number):
    mode = parse_nvpmodel(f"NV Power Mode: {name}\n{number}")
    sizes = ("total_bytes", "available_bytes", "swap_total_bytes", "swap_used_bytes")
    assert fits(Preflight(power_mode=mode, memory=dict.fromkeys(sizes)).to_json())


@pytest.mark.parametrize("body", ["sys.exit(1)", "print('NV Power Mode: MAXN\\n0'); sys.exit(255)", "sys.stdin.read()"])
def test_failing_nvpmodel_gives_no_mode(tmp_path, tools, body):
    put(tools, "nvpmodel", body)
    assert preflight.read(tmp_path).power_mode is None


def test_hanging_nvpmodel_is_abandoned(tmp_path, tools, monkeypatch):
    monkeypatch.setattr(preflight, "_NVPMODEL_S", 0.5)
    put(tools, "nvpmodel", "time.sleep(60)")
    began = time.monotonic()
    assert preflight.read(tmp_path).power_mode is None and time.monotonic() - began < 10


CONTENT = st.binary(max_size=40) | st.integers(-(10**20), 10**20).map(lambda n: str(n).encode())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_file_content_is_read_without_an_error(tmp_path_factory, data):
    root = boards.write(data.draw(st.sampled_from(boards.NAMES)), tmp_path_factory.mktemp("fuzz"))
    paths = sorted(path for path in Path(root).rglob("*") if path.is_file() and not path.is_symlink())
    for path in data.draw(st.lists(st.sampled_from(paths), max_size=12, unique=True)):
        path.write_bytes(data.draw(CONTENT))
    state = preflight.read(root)
    assert fits(state.to_json())
    assert all(text.isprintable() for text in [*state.described().values(), *state.warnings()])
