"""End to end on an arm64 drone in a box: set up over SSH, measure, and bring the reports home over a link that fails.

The processor is emulated, so no figure of time means anything here; what is proven is that everything arrives, once.
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
#: A run that takes little time.
NULL = "bench rig.epb --runtime null --no-accuracy --warmup 1 --idle 0.1"


@pytest.fixture
def drone(drone, agent):
    """On, with the agent, and nothing in its spool."""
    drone.exec(f"rm -rf {SPOOL}")
    return drone


@pytest.fixture(scope="session")
def measured(agent, bundle):
    """A report of the INT8 file at 320 px, measured on the drone, as `bench` left it in a file there."""
    drone = agent.drone
    shutil.copy(bundle, drone.root / "root/rig.epb")
    agent("bench rig.epb --runtime ort --precision int8 --seconds 1 --warmup 1 --no-spool --report measured.json")
    return json.loads((drone.root / "root/measured.json").read_text())


def test_what_was_installed_is_arm64_and_came_from_wheels(agent):
    libraries = list(agent.folder.rglob("*.so"))
    assert len(libraries) > 20
    for library in libraries:
        assert library.read_bytes()[18:20] == b"\xb7\x00", library  # e_machine of an ELF file: AArch64
    wheels = agent.folder.glob("lib/python3*/site-packages/*.dist-info/WHEEL")
    tags = {path.parent.name: path.read_text() for path in wheels}
    assert {name.split("-")[0] for name in tags} >= {"edgeprune_device", "numpy", "pillow", "pynacl", "onnxruntime"}
    for name, text in tags.items():
        assert "aarch64" in text or "none-any" in text, name


def test_info_says_what_the_drone_is(agent):
    found = json.loads(agent("info --json").stdout)
    assert found["machine"]["machine"] == "aarch64"
    assert found["machine"]["os"].startswith("Debian")


def test_doctor_finds_nothing_that_is_needed_missing(agent):
    done = agent("doctor", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["ok", "inference", "ort"] in lines and ["ok", "trusted", "keys"] in [line[:3] for line in lines]
    assert not [line for line in lines if line[0] not in ("ok", "note", "->")]


def test_setup_again_finds_everything_done_and_keeps_the_key(agent, ground):
    folder, key = agent.folder, (agent.drone.root / "root/.config/edgeprune/keys/report.pub").read_text()
    done = ground.edgeprune("setup", "root@drone", "--with", "ort", **wheels_for(agent.drone, (2, 36)))
    assert done.returncode == 0, done.stderr
    assert "known here as drone" in done.stdout
    again = Agent(agent.drone)
    assert again.folder == folder
    assert (agent.drone.root / "root/.config/edgeprune/keys/report.pub").read_text() == key
    assert (ground.home / ".config/edgeprune/devices/drone.pub").read_text() == key


def test_a_good_bundle_is_verified_there(agent, bundle, ground):
    shutil.copy(bundle, agent.drone.root / "root/rig.epb")
    shown = agent("info rig.epb").stdout
    assert "trusted    yes" in shown and hashlib.sha256(bundle.read_bytes()).hexdigest() in shown


@pytest.mark.parametrize("place", [0.02, 0.5, 0.999])
def test_a_damaged_bundle_is_refused_there_in_one_line(agent, bundle, place):
    data = bytearray(bundle.read_bytes())
    data[int(len(data) * place)] ^= 1
    (agent.drone.root / "root/damaged.epb").write_bytes(data)
    done = agent("bench damaged.epb", check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "damaged.epb" in done.stderr and "Traceback" not in done.stderr


def test_a_strangers_bundle_is_refused_there_in_one_line(agent, bundle, tmp_path):
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


def test_int8_runs_there_and_finds_what_it_found_here(measured):
    assert measured["precision"] == "int8" and measured["settings"]["imgsz"] == [320, 320]
    assert measured["runtime"]["name"] == "ort" and measured["environment"]["machine"] == "aarch64"
    assert measured["accuracy"]["boxes"] > 0
    assert abs(measured["map50_95_delta"]) < 0.02  # another processor rounds INT8 another way
    for stage in ("decode", "pre", "infer", "post", "end_to_end"):
        assert len(measured["stages"][stage]["samples_ns"]) == measured["stages"][stage]["samples"] >= 1
    assert measured["power"] is None and measured["thermal"] is None  # there are no sensors


def waiting(drone):
    """The names in the spool, work in progress among them."""
    return drone.exec(f"cd {SPOOL} && ls -A pending delivered", check=False).stdout.split()


def test_where_the_disk_is_full_bench_says_so_at_once_and_leaves_nothing_half(agent, drone, bundle):
    shutil.copy(bundle, drone.root / "root/rig.epb")
    drone.fill_disk()
    before = waiting(drone)
    done = agent(f"{NULL} --seconds 1", check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("edgeprune: error: ") and "Traceback" not in done.stderr
    assert "no room" in done.stderr or "no space" in done.stderr.lower()
    assert waiting(drone) == before
    drone.empty_disk()
    agent(f"{NULL} --seconds 1")
    assert len([name for name in waiting(drone) if name.endswith(".json")]) == 1


def test_a_disk_that_fills_up_during_the_run_costs_no_report(agent, drone, bundle):
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


# --- reports come home ------------------------------------------------------------------------------------------------


@pytest.fixture
def reports(ground):
    """The host's folder of reports, empty."""
    folder = ground.home / ".local/share/edgeprune/reports"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@pytest.fixture
def put(agent, drone, measured):
    """put(samples) -> the id of a report that waits on the drone; some 50 bytes a sample."""
    shutil.copy(Path(__file__).with_name("another_report.py"), drone.root / "root")
    return lambda samples: agent.python(f"another_report.py measured.json {samples}").stdout.strip()


def arrived(reports):
    """The ids that the host has, each file whole and signed by the drone's own key."""
    from edgeprune_device.reports.report import BenchReport
    from edgeprune_device.trust import keys

    found = []
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
        found.append(path.stem)
    return found


def delivered(drone):
    return [name.removesuffix(".json") for name in drone.exec(f"ls {SPOOL}/delivered").stdout.split()]


def test_a_report_measured_there_is_delivered_once_and_only_once(agent, drone, ground, bundle, reports):
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
    """begins() -> the bytes of files that the drone was asked to begin at, in turn: its tail notes it."""
    tail = drone.root / "usr/local/bin/tail"
    tail.parent.mkdir(parents=True, exist_ok=True)
    tail.write_text('#!/bin/sh\necho "$2" >>/root/begins\nexec /usr/bin/tail "$@"\n')
    tail.chmod(0o755)
    yield lambda: [int(line) for line in drone.exec("cat begins").stdout.split()]
    drone.exec("rm -f /usr/local/bin/tail begins")


def cut_in_mid_transfer(drone, reports):
    """When a good part is on the host's disk; on the wire more is, and behind a lost packet it counts for nothing. That
    part's bytes."""
    deadline = time.monotonic() + 60
    while (held := sum(path.stat().st_size for path in reports.glob("incoming/.*.part"))) <= 100_000:
        assert time.monotonic() < deadline, held
        time.sleep(0.005)
    drone.link.cut()
    return held


def test_the_link_is_cut_in_mid_transfer(drone, ground, put, reports, begins):
    """For so long that SSH gives up. It heals, and the same run goes on where it was."""
    identity = put(8000)  # 0.4 MB
    drone.link.rate(1000)
    collecting = ground.start(*ground.edgeprune_argv("collect", "root@drone"))
    held = cut_in_mid_transfer(drone, reports)
    assert arrived(reports) == [] and delivered(drone) == []
    said = next(line for line in collecting.stderr if "trying again" in line)
    assert "drone" in said
    drone.link.heal()
    _, err = collecting.communicate(timeout=120)
    assert collecting.returncode == 0, err
    assert arrived(reports) == delivered(drone) == [identity]
    assert reports_waiting(drone) == []
    first, second = begins()
    assert first == 1 and second > held


def test_a_collect_that_was_killed_is_continued_by_the_next(drone, ground, put, reports, begins):
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


def test_a_link_that_loses_every_tenth_packet(drone, ground, put, reports):
    identities = sorted(put(400) for _ in range(3))
    drone.link.lossy(10)
    done = ground.edgeprune("collect", "root@drone")
    assert done.returncode == 0, done.stderr
    drone.link.lossy(0)
    assert arrived(reports) == sorted(delivered(drone)) == identities


def test_a_full_disk_keeps_no_report_from_coming_home(drone, ground, put, reports):
    identity = put(100)
    drone.fill_disk()
    done = ground.edgeprune("collect", "root@drone")
    assert done.returncode == 0, done.stderr
    assert arrived(reports) == delivered(drone) == [identity]


def test_the_drone_dies_between_fetch_and_acknowledgement(drone, ground, put, reports):
    """Its mv, which is the acknowledgement, is made to hang; then everything on the drone is killed."""
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
    """The drone believes that it is an Orin NX. The tree is a FAKE, made by tests/device/sysfs from what is published.

    While the test runs its figures rise: 100 mW, 0.1 degrees and one over-current event every tenth of a second.
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


def test_power_heat_and_throttling_are_measured_from_a_fake_jetson(agent, drone, bundle, fake_jetson):
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
