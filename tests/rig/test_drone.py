"""End to end on an emulated arm64 drone: set up over SSH, measure, and collect the reports over a failing link.

The CPU is emulated, so times are meaningless here; the tests prove that everything arrives exactly once.
"""

import hashlib
import json
import shutil
import threading
import time
from pathlib import Path

import pytest

from ..device import sysfs
from .conftest import Agent, wheels_for

JETSON = "jetson-orin-nx, JetPack 6"
SPOOL = "/root/.local/state/edgeprune/spool"
#: A short run.
NULL = "bench rig.epb --runtime null --no-accuracy --warmup 1 --idle 0.1"


@pytest.fixture
def drone(drone, agent):
    """The drone, switched on, with the agent and an empty spool."""
    drone.exec(f"rm -rf {SPOOL}")
    return drone


@pytest.fixture(scope="session")
def measured(agent, bundle):
    """A report of the INT8 file at 320 px, measured on the drone and stored there by `bench`."""
    drone = agent.drone
    shutil.copy(bundle, drone.root / "root/rig.epb")
    agent("bench rig.epb --runtime ort --precision int8 --seconds 1 --warmup 1 --no-spool --report measured.json")
    return json.loads((drone.root / "root/measured.json").read_text())


def test_installed_packages_are_arm64_wheels(agent):
    libraries = list(agent.folder.rglob("*.so"))
    assert len(libraries) > 20
    for library in libraries:
        assert library.read_bytes()[18:20] == b"\xb7\x00", library  # e_machine of an ELF file: AArch64
    wheels = agent.folder.glob("lib/python3*/site-packages/*.dist-info/WHEEL")
    tags = {path.parent.name: path.read_text() for path in wheels}
    assert {name.split("-")[0] for name in tags} >= {"edgeprune_device", "numpy", "pillow", "pynacl", "onnxruntime"}
    for name, text in tags.items():
        assert "aarch64" in text or "none-any" in text, name


def test_info_describes_the_drone(agent):
    info = json.loads(agent("info --json").stdout)
    assert info["machine"]["machine"] == "aarch64"
    assert info["machine"]["os"].startswith("Debian")


def test_doctor_finds_every_required_part(agent):
    done = agent("doctor", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["ok", "inference", "ort"] in lines and ["ok", "trusted", "keys"] in [line[:3] for line in lines]
    assert not [line for line in lines if line[0] not in ("ok", "note", "->")]


def test_second_setup_changes_nothing_and_keeps_the_key(agent, ground):
    folder, key = agent.folder, (agent.drone.root / "root/.config/edgeprune/keys/report.pub").read_text()
    done = ground.edgeprune("setup", "root@drone", "--with", "ort", **wheels_for(agent.drone, (2, 36)))
    assert done.returncode == 0, done.stderr
    assert "known here as drone" in done.stdout
    again = Agent(agent.drone)
    assert again.folder == folder
    assert (agent.drone.root / "root/.config/edgeprune/keys/report.pub").read_text() == key
    assert (ground.home / ".config/edgeprune/devices/drone.pub").read_text() == key


def test_valid_bundle_is_verified_on_the_drone(agent, bundle, ground):
    shutil.copy(bundle, agent.drone.root / "root/rig.epb")
    shown = agent("info rig.epb").stdout
    assert "trusted    yes" in shown and hashlib.sha256(bundle.read_bytes()).hexdigest() in shown


@pytest.mark.parametrize("place", [0.02, 0.5, 0.999])
def test_damaged_bundle_is_refused_on_the_drone_in_one_line(agent, bundle, place):
    data = bytearray(bundle.read_bytes())
    data[int(len(data) * place)] ^= 1
    (agent.drone.root / "root/damaged.epb").write_bytes(data)
    done = agent("bench damaged.epb", check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "damaged.epb" in done.stderr and "Traceback" not in done.stderr


def test_untrusted_bundle_is_refused_on_the_drone_in_one_line(agent, bundle, tmp_path):
    from edgeprune_device.trust.bundle import Bundle
    from nacl.signing import SigningKey

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPRUNE_HOME", str(tmp_path))
        opened = Bundle.open(bundle, allow_untrusted=True)
        payloads = {payload.name: opened.read(payload.name) for payload in opened.manifest.payloads}
        manifest = {name: value for name, value in opened.manifest.to_json().items() if name != "payloads"}
        Bundle.write(tmp_path / "stranger.epb", manifest, payloads, SigningKey.generate())
    shutil.copy(tmp_path / "stranger.epb", agent.drone.root / "root")
    done = agent("bench stranger.epb", check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "not trusted" in done.stderr


def test_int8_has_the_same_accuracy_on_the_drone(measured):
    assert measured["precision"] == "int8" and measured["settings"]["imgsz"] == [320, 320]
    assert measured["runtime"]["name"] == "ort" and measured["environment"]["machine"] == "aarch64"
    assert measured["accuracy"]["boxes"] > 0
    assert abs(measured["map50_95_delta"]) < 0.02  # another CPU rounds INT8 differently
    for stage in ("decode", "pre", "infer", "post", "end_to_end"):
        assert len(measured["stages"][stage]["samples_ns"]) == measured["stages"][stage]["samples"] >= 1
    assert measured["power"] is None and measured["thermal"] is None  # no sensors


def waiting(drone):
    """The names in the spool, including unfinished files."""
    return drone.exec(f"cd {SPOOL} && ls -A pending delivered", check=False).stdout.split()


def test_bench_with_a_full_disk_fails_at_once_and_leaves_no_partial_file(agent, drone, bundle):
    shutil.copy(bundle, drone.root / "root/rig.epb")
    drone.fill_disk()
    before = waiting(drone)
    done = agent(f"{NULL} --seconds 1", check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("edgeprune: error: ") and "Traceback" not in done.stderr
    assert "too little free space" in done.stderr or "no space" in done.stderr.lower()
    assert waiting(drone) == before
    drone.empty_disk()
    agent(f"{NULL} --seconds 1")
    assert len([name for name in waiting(drone) if name.endswith(".json")]) == 1


def test_disk_that_fills_up_during_the_run_loses_no_report(agent, drone, bundle):
    shutil.copy(bundle, drone.root / "root/rig.epb")
    done = []
    run = threading.Thread(
        target=lambda: done.append(agent(f"{NULL} --seconds 4", check=False)),
    )
    run.start()
    deadline = time.monotonic() + 60
    while not drone.opened(".reserved"):
        assert run.is_alive() and time.monotonic() < deadline, done
        time.sleep(0.05)
    drone.fill_disk()
    run.join()
    assert done[0].returncode == 0, done[0].stderr
    assert len(reports_waiting(drone)) == 1


def reports_waiting(drone):
    return drone.exec(f"ls {SPOOL}/pending 2>/dev/null", check=False).stdout.split()


# --- collecting reports -----------------------------------------------------------------------------------------------


@pytest.fixture
def reports(ground):
    """The host's empty folder of reports."""
    folder = ground.home / ".local/share/edgeprune/reports"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@pytest.fixture
def put(agent, drone, measured):
    """put(samples) -> the ID of a report that waits on the drone, with about 50 bytes per sample."""
    shutil.copy(Path(__file__).with_name("another_report.py"), drone.root / "root")
    return lambda samples: agent.python(f"another_report.py measured.json {samples}").stdout.strip()


def arrived(reports):
    """The IDs of the reports on the host, after checking that each file is complete and signed by the drone."""
    from edgeprune_device.reports.report import BenchReport
    from edgeprune_device.trust import keys

    ids = []
    for path in sorted(reports.glob("*.json")):
        if path.name.endswith(".receipt.json"):
            continue
        data = path.read_bytes()
        assert hashlib.sha256(data).hexdigest() == path.stem
        key = BenchReport.from_json(json.loads(data)).verify()
        device = (reports.parents[3] / ".config/edgeprune/devices/drone.pub").read_text().strip()
        assert bytes(key).hex() == device, keys.fingerprint(key)
        receipt = json.loads(path.with_suffix(".receipt.json").read_text())
        assert (receipt["source"], receipt["device"]) == ("root@drone", "drone") and receipt["collected_at"]
        ids.append(path.stem)
    return ids


def delivered(drone):
    return [name.removesuffix(".json") for name in drone.exec(f"ls {SPOOL}/delivered").stdout.split()]


def test_report_measured_on_the_drone_is_delivered_exactly_once(agent, drone, ground, bundle, reports):
    shutil.copy(bundle, drone.root / "root/rig.epb")
    agent(f"{NULL} --seconds 1")
    (name,) = reports_waiting(drone)
    for _ in range(2):
        done = ground.edgeprune("collect", "root@drone")
        assert done.returncode == 0, done.stderr
        assert arrived(reports) == delivered(drone) == [name.removesuffix(".json")]
        assert reports_waiting(drone) == []


@pytest.fixture
def begins(drone):
    """begins() -> the file offsets at which the drone was asked to start, as logged by its tail."""
    tail = drone.root / "usr/local/bin/tail"
    tail.parent.mkdir(parents=True, exist_ok=True)
    tail.write_text('#!/bin/sh\necho "$2" >>/root/begins\nexec /usr/bin/tail "$@"\n')
    tail.chmod(0o755)
    yield lambda: [int(line) for line in drone.exec("cat begins").stdout.split()]
    drone.exec("rm -f /usr/local/bin/tail begins")


def cut_in_mid_transfer(drone, reports):
    """Cut the link when a large part is on the host's disk, and return the size of that part. More is in transit, but
    data after a lost packet does not count."""
    deadline = time.monotonic() + 60
    while (held := sum(path.stat().st_size for path in reports.glob("incoming/.*.part"))) <= 100_000:
        assert time.monotonic() < deadline, held
        time.sleep(0.005)
    drone.link.cut()
    return held


def test_collect_continues_after_the_link_was_cut(drone, ground, put, reports, begins):
    """The cut is so long that SSH gives up. After it the same run continues where it stopped."""
    identity = put(8000)  # 0.4 MB
    drone.link.rate(1000)
    collecting = ground.start(*ground.edgeprune_argv("collect", "root@drone"))
    held = cut_in_mid_transfer(drone, reports)
    assert arrived(reports) == [] and delivered(drone) == []
    message = next(line for line in collecting.stderr if "trying again" in line)
    assert "drone" in message
    drone.link.heal()
    _, err = collecting.communicate(timeout=120)
    assert collecting.returncode == 0, err
    assert arrived(reports) == delivered(drone) == [identity]
    assert reports_waiting(drone) == []
    first, second = begins()
    assert first == 1 and second > held


def test_killed_collect_is_continued_by_the_next_one(drone, ground, put, reports, begins):
    identity = put(8000)
    drone.link.rate(1000)
    collecting = ground.start(*ground.edgeprune_argv("collect", "root@drone"))
    held = cut_in_mid_transfer(drone, reports)
    collecting.kill()
    collecting.communicate()
    drone.link.restore()
    assert arrived(reports) == [] and delivered(drone) == []
    done = ground.edgeprune("collect", "root@drone")
    assert done.returncode == 0, done.stderr
    assert arrived(reports) == delivered(drone) == [identity]
    first, second = begins()
    assert first == 1 and second > held


def test_collect_works_with_10_percent_packet_loss(drone, ground, put, reports):
    identities = sorted(put(400) for _ in range(3))
    drone.link.lossy(10)
    done = ground.edgeprune("collect", "root@drone")
    assert done.returncode == 0, done.stderr
    drone.link.lossy(0)
    assert arrived(reports) == sorted(delivered(drone)) == identities


def test_full_disk_of_the_drone_does_not_prevent_collecting(drone, ground, put, reports):
    identity = put(100)
    drone.fill_disk()
    done = ground.edgeprune("collect", "root@drone")
    assert done.returncode == 0, done.stderr
    assert arrived(reports) == delivered(drone) == [identity]


def test_drone_that_dies_between_fetch_and_acknowledgement_delivers_once(drone, ground, put, reports):
    """Its mv, the acknowledgement, hangs; then all processes of the drone are killed."""
    identity = put(100)
    mv = drone.root / "usr/local/bin/mv"
    mv.parent.mkdir(parents=True, exist_ok=True)
    mv.write_text("#!/bin/sh\n: >/root/acknowledging\nexec sleep 1000\n")
    mv.chmod(0o755)
    collecting = ground.start(*ground.edgeprune_argv("collect", "root@drone"))
    deadline = time.monotonic() + 60
    while not (drone.root / "root/acknowledging").exists():
        assert collecting.poll() is None and time.monotonic() < deadline, collecting.communicate()
        time.sleep(0.05)
    assert arrived(reports) == [identity] and delivered(drone) == []
    drone.kill()
    drone.start()
    drone.exec("rm /usr/local/bin/mv /root/acknowledging")
    collecting.communicate(timeout=120)
    done = ground.edgeprune("collect", "root@drone")
    assert done.returncode == 0, done.stderr
    assert arrived(reports) == delivered(drone) == [identity]
    assert reports_waiting(drone) == []


# --- a board with sensors ---------------------------------------------------------------------------------------------


@pytest.fixture
def fake_jetson(drone, tmp_path):
    """The drone appears to be an Orin NX. The tree is a FAKE, made by tests/device/sysfs from published data.

    During the test its figures rise by 100 mW, 0.1 degrees and one over-current event every 0.1 s.
    """
    tree = sysfs.write(JETSON, tmp_path / "tree")
    drone.kill()
    drone.board(tree / "sys")
    drone.start()
    shutil.copy(tree / "etc/nv_tegra_release", drone.root / "etc")
    voltage, current = (drone.sys / Path(name).relative_to("sys") for name in sysfs.rail(JETSON, "VDD_IN"))
    zones = (drone.sys / "devices/virtual/thermal").glob("*/type")
    heat = next(zone for zone in zones if zone.read_text() == "tj-thermal\n").with_name("temp")
    events = next(path for path in drone.sys.rglob("oc3_event_cnt") if path.is_file())
    voltage.write_text("5000\n")
    stop = threading.Event()

    def rise():
        ticks = 0
        while not stop.wait(0.1):
            current.write_text(f"{1000 + 20 * ticks}\n")
            heat.write_text(f"{40000 + 100 * ticks}\n")
            events.write_text(f"{37 + ticks}\n")
            ticks += 1

    worker = threading.Thread(target=rise)
    worker.start()
    yield
    stop.set()
    worker.join()
    drone.exec("rm -f /etc/nv_tegra_release")
    drone.kill()
    drone.board(None)


def test_power_temperature_and_throttling_of_a_fake_jetson_are_measured(agent, drone, bundle, fake_jetson):
    shutil.copy(bundle, drone.root / "root/rig.epb")
    agent("bench rig.epb --runtime null --no-accuracy --seconds 3 --warmup 1 --idle 2 --no-spool --report fake.json")
    report = json.loads((drone.root / "root/fake.json").read_text())
    assert report["board"]["model"].startswith("NVIDIA Jetson Orin NX")
    assert report["board"]["l4t"] == "36.4.3" and report["board"]["jetpack"] == "6.2"
    power, tj, throttling = report["power"], report["thermal"]["tj"], report["throttling"]
    assert power["whole_module"] and power["source"].startswith("VDD_IN")
    assert 5000 < power["idle_mw"] < power["load_mw"]
    assert 0 < power["mj_per_frame_net"] < power["mj_per_frame_gross"]
    assert 40 <= tj["start_c"] < tj["end_c"] <= tj["max_c"]
    assert throttling["events"]["oc3"] > 0 and throttling["events"]["oc2"] == 0
