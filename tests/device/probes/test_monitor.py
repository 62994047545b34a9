"""Tests of the monitor's process on recorded boards and on a FUSE tree with changing values (fakes/fuse_sysfs.py)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sysfs as boards
from edgeprune_device import probes, schema
from edgeprune_device.probes import monitor as monitor_module
from edgeprune_device.probes import summary

NX = "jetson-orin-nx, JetPack 6"
AGX = "jetson-agx-orin, JetPack 6"
FUSE = Path(__file__).parents[1] / "fakes" / "fuse_sysfs.py"


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return stream.read().rsplit(b")", 1)[1].split()[0] != b"Z"
    except OSError:
        return False


def ends(pid, seconds=10.0):
    until = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(pid)


@pytest.fixture
def fuse(tmp_path):
    """mount(board, changes) -> the root of a tree that this test's FUSE server provides."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs root and /dev/fuse")
    if subprocess.run(["/usr/bin/python3", "-c", "import fusepy"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("needs Debian's fuse3 and python3-fusepy")
    servers = []

    def mount(name, changes):
        files, links = boards.files(name)
        files.update(changes)
        # Links are relative, as in the real /sys, because FUSE resolves them within its mount.
        links = {link: os.path.relpath(target, os.path.dirname(link)) for link, target in links.items()}
        folder = tmp_path / "fuse"
        folder.mkdir()
        server = subprocess.Popen(["/usr/bin/python3", str(FUSE), str(folder)], stdin=subprocess.PIPE)
        servers.append((server, folder))
        server.stdin.write(json.dumps({"files": files, "links": links}).encode())
        server.stdin.close()
        until = time.monotonic() + 10
        while not (folder / "sys").is_dir():
            assert server.poll() is None and time.monotonic() < until, "the FUSE tree did not come up"
            time.sleep(0.02)
        return folder

    yield mount
    for server, folder in servers:
        subprocess.run(["fusermount3", "-u", "-z", str(folder)], check=False, stderr=subprocess.DEVNULL)
        server.kill()
        server.wait()


def test_samples_are_taken_at_regular_times_in_a_separate_process(tmp_path):
    with probes.Monitor(boards.write(NX, tmp_path), 0.05) as monitor:
        assert monitor.pid not in (None, os.getpid())
        time.sleep(1.0)
        early = monitor.series()
        time.sleep(0.5)
    series = monitor.series()
    assert monitor.pid is None and monitor.problem is None
    assert len(early.t_ns) >= 10 and len(series.t_ns) > len(early.t_ns) and series.t_ns[: len(early.t_ns)] == early.t_ns
    assert set(series.channels) == {channel.key for channel in probes.discover(tmp_path)}
    assert {value for _, value in series.points("power", "VDD_IN")} == {5250}
    assert series.read_errors["temperature.cv0"] == len(series.t_ns) and "temperature.tj" not in series.read_errors
    steps = [b - a for a, b in zip(series.t_ns, series.t_ns[1:])]
    assert sorted(steps)[len(steps) // 2] == pytest.approx(50e6, rel=0.3)
    assert 0 < series.round_ms["mean"] <= series.round_ms["max"] and series.cpu_share > 0
    root = schema.load("report")
    schema._check(root["$defs"]["series"], json.loads(json.dumps(series.to_json())), "series", root)


def test_times_are_from_the_clock_that_all_processes_share(tmp_path):
    before = time.monotonic_ns()
    with probes.Monitor(boards.write(NX, tmp_path), 0.05) as monitor:
        pass
    times = monitor.series().t_ns
    assert before <= times[0] <= times[-1] <= time.monotonic_ns()


def test_no_process_is_started_without_sensors(tmp_path):
    with probes.Monitor(tmp_path) as monitor:
        assert monitor.pid is None
    assert monitor.series() is None and monitor.problem == "no sensors found"


def test_cost_of_monitoring_is_small_and_reported(tmp_path):
    with probes.Monitor(boards.write(AGX, tmp_path), 0.2) as monitor:
        time.sleep(3.0)
        ticks = Path(f"/proc/{monitor.pid}/stat").read_text().rsplit(")", 1)[1].split()
        used_s = (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")
        rss_kb = next(line for line in Path(f"/proc/{monitor.pid}/status").read_text().splitlines() if "VmRSS" in line)
    series = monitor.series()
    print(f"{len(series.channels)} channels: {series.cpu_share:.2%} of a core, start included {used_s:.2f} s, {rss_kb}")
    assert series.cpu_share < 0.1 and used_s < 1.0  # measured: below 0.01; the margin is for a busy machine


KILLED = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by default in a background job
from edgeprune_device import probes
with probes.Monitor(Path(sys.argv[1]), 0.1) as monitor:
    print(monitor.pid, flush=True)
    time.sleep(60)
"""


INTERRUPTED = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by default in a background job
from edgeprune_device import probes
with probes.Monitor(Path(sys.argv[1]), 0.1) as monitor:
    print(monitor.pid, flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        pass
print(len(monitor.series().t_ns), flush=True)
"""


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_monitor_ends_with_its_parent(tmp_path, signal_number):
    command = [sys.executable, "-c", KILLED, str(boards.write(NX, tmp_path))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.send_signal(signal_number)
        parent.wait(10)
        assert ends(pid)


def test_monitor_ends_even_if_another_child_holds_its_pipe(tmp_path):
    # A forked child keeps the parent's end of the pipe open.
    code = KILLED.replace("    time.sleep(60)", "    import os\n    (os.fork() and time.sleep(60)) or time.sleep(8)")
    command = [sys.executable, "-c", code, str(boards.write(NX, tmp_path))]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    assert ends(pid, 3.0)
    parent.stdout.close()


def test_ctrl_c_at_the_terminal_keeps_the_samples(tmp_path):
    command = [sys.executable, "-c", INTERRUPTED, str(boards.write(NX, tmp_path))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, text=True) as parent:
        parent.stdout.readline()
        time.sleep(0.5)
        os.killpg(parent.pid, signal.SIGINT)  # like the terminal, to every process of the group
        assert int(parent.stdout.read()) >= 3


def test_killed_monitor_is_a_problem_not_an_error(tmp_path):
    with probes.Monitor(boards.write(NX, tmp_path), 0.05) as monitor:
        os.kill(monitor.pid, signal.SIGKILL)
        assert monitor.series() is None
    assert monitor.series() is None and monitor.problem == "the sensor monitor failed (its process ended)"


def test_monitor_that_cannot_start_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with probes.Monitor(boards.write(NX, tmp_path), 0.05) as monitor:
        assert monitor.pid is None
    assert monitor.series() is None and "did not start" in monitor.problem


def test_worker_that_does_not_answer_does_not_block(tmp_path, monkeypatch):
    monkeypatch.setattr(monitor_module, "_ANSWER_S", 0.5)
    with probes.Monitor(boards.write(NX, tmp_path), 0.05) as monitor:
        pid = monitor.pid
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        assert monitor.series() is None and time.monotonic() - began < 6
    assert monitor.problem == "the sensor monitor failed (no answer in 0 s)" and not alive(pid)


def test_modules_in_the_current_folder_are_not_run(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('the current folder is on the path')")
    monkeypatch.chdir(tmp_path)
    with probes.Monitor(boards.write(NX, tmp_path / "root"), 0.05) as monitor:
        pass
    assert monitor.series() is not None


def test_long_run_drops_every_second_sample(monkeypatch):
    monkeypatch.setattr(monitor_module, "_MOST_ROUNDS", 12)
    monkeypatch.setattr(monitor_module, "_KEPT_ROUNDS", 4)
    counter = iter(range(100))
    recorder = monitor_module._Recorder([probes.Channel("event", "oc1", "count", lambda: next(counter))], 0.2)
    for _ in range(25):
        recorder.round()
    data = recorder.to_json()
    assert len(data["t_ns"]) < 12 and data["interval_s"] > 0.2
    values = data["channels"]["event.oc1"]["values"]
    assert values == sorted(values) and values[-1] == 24
    assert values[:4] == [0, 1, 2, 3]  # idle, before the load


def test_idle_power_is_still_known_after_hours(monkeypatch):
    """Eight hours with five samples per second: 10 s idle, then load."""
    now = 0
    monkeypatch.setattr(monitor_module.time, "monotonic_ns", lambda: now)
    watched = [probes.Channel("power", "VDD_IN", "mW", lambda: 4000 if now < 10e9 else 9000)]
    recorder = monitor_module._Recorder(watched, 0.2)
    while now < 8 * 3600e9:
        recorder.round()
        now += int(recorder.interval_s * 1e9)
    series = probes.Series.from_json(recorder.to_json())
    power = summary.power(series, (0, int(9.9e9)), (int(11e9), now), 2_880_000)
    assert power["idle_mw"] == 4000 and power["load_mw"] == 9000 and len(series.t_ns) < 12000


def test_changing_values_are_followed_and_eagain_is_no_figure(fuse):
    _, current = boards.rail(NX, "VDD_IN")
    zones = "sys/devices/virtual/thermal/thermal_zone"
    root = fuse(
        NX,
        {
            current: {"cycle": [1000, 3000], "every_s": 0.13},
            f"{zones}1/temp": {"eagain": [0.2, 0.2], "else": 51000},
            f"{zones}8/temp": {"ramp": [40000, 2000]},
            "sys/devices/platform/soctherm-oc-event/hwmon/hwmon4/oc3_event_cnt": {"ramp": [37, 10]},
            "sys/devices/virtual/thermal/cooling_device1/cur_state": {"cycle": [0, 1], "every_s": 0.4},
        },
    )
    off = os.open(str(root / f"{zones}2/temp"), os.O_RDONLY)  # cv0: real EAGAIN
    with pytest.raises(BlockingIOError):
        os.read(off, 100)
    os.close(off)
    with probes.Monitor(root, 0.02) as monitor:
        time.sleep(0.5)
        began = time.monotonic_ns()
        time.sleep(2.6)
        window = (began, time.monotonic_ns())
    series = monitor.series()
    power = summary.power(series, None, window, 100)
    assert {value for _, value in series.points("power", "VDD_IN")} == {5000, 15000}
    # On a busy machine the samples are unevenly distributed over the two values.
    assert power["load_mw"] == pytest.approx(10000, rel=0.3) and power["source"] == "VDD_IN, the whole module"
    seconds = (window[1] - window[0]) / 1e9
    assert power["mj_per_frame_gross"] == pytest.approx(power["load_mw"] * seconds / 100, rel=1e-3)
    heat = summary.thermal(series, window)
    assert heat["gpu"] == {"start_c": 51, "end_c": 51, "max_c": 51} and "cv0" not in heat
    assert heat["tj"]["end_c"] - heat["tj"]["start_c"] == pytest.approx(5.2, rel=0.15)
    assert series.read_errors["temperature.cv0"] == len(series.t_ns)
    assert 0.2 < series.read_errors["temperature.gpu"] / len(series.t_ns) < 0.8
    slowed = summary.throttling(series, window)
    assert slowed["events"]["oc3"] == pytest.approx(26, abs=4) and slowed["events"]["oc2"] == 0
    assert slowed["states"]["gpu"] == 1 and slowed["states"]["cpu"] == 0


def test_slow_sensor_gives_fewer_samples_and_no_backlog(fuse):
    volt, _ = boards.rail(NX, "VDD_IN")
    with probes.Monitor(fuse(NX, {volt: {"slow_s": 0.25, "else": 5000}}), 0.1) as monitor:
        time.sleep(2.0)
    series = monitor.series()
    steps = [b - a for a, b in zip(series.t_ns, series.t_ns[1:])]
    assert min(steps) >= 0.24e9 and series.round_ms["mean"] >= 250 and 4 <= len(series.t_ns) <= 9


def test_driver_that_disappears_is_counted(fuse, tmp_path):
    root = fuse(NX, {})
    with probes.Monitor(root, 0.05) as monitor:
        time.sleep(0.4)
        subprocess.run(["fusermount3", "-u", "-z", str(root)], check=True)
        time.sleep(0.4)
    series = monitor.series()
    assert 0 < series.read_errors["power.VDD_IN"] < len(series.t_ns)
