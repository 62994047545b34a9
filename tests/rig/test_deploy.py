"""The whole chain to an emulated arm64 drone: setup, deployment over a link that is cut, a second deployment that sends
only the INT8 file while the drone dies, a full disk, and a rollback. Slow: 60 MB over a bad radio with three cuts
(test_transfer.py measures the time of a transfer).

The CPU is emulated, and systemd is missing; `edgeprune run` has its own tests for running the releases.
"""

import functools
import json
import os
import re
import threading
import time
from pathlib import Path

import onnx
import pytest
from edgeprune_device.releases import Releases
from edgeprune_device.trust.bundle import Bundle

from . import link as veth
from . import relay

ROOT = "/opt/edgeprune"
TO = f"root@drone:{ROOT}"


@pytest.fixture(scope="module")
def board(agent):
    """The drone with the agent and without releases."""
    agent.drone.exec(f"rm -rf {ROOT}")
    return agent.drone


@pytest.fixture
def changed(bundle, ground, tmp_path):
    """changed(number, **payloads) -> the path of the bundle with another INT8 file or other payloads."""

    def change(number, int8=True, **more):
        from edgeprune_device.trust import keys

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EDGEPRUNE_HOME", str(ground.home / ".config/edgeprune"))
            opened = Bundle.open(bundle)
            payloads = {entry.name: opened.read(entry.name) for entry in opened.manifest.payloads}
            if int8:
                model = onnx.load_from_string(payloads["model.int8.onnx"])
                model.doc_string = f"number {number}"
                payloads["model.int8.onnx"] = model.SerializeToString()
            manifest = {**opened.manifest.to_json(), "counter": opened.manifest.counter + number}
            del manifest["payloads"]
            entry = manifest["models"]["int8"]
            entry.pop("sha256", None)
            return Bundle.write(tmp_path / f"{number}.epb", manifest, {**payloads, **more}, keys.load_or_create()).path

    return change


@functools.lru_cache(None)
def sha256(path):
    return Bundle.open(path, allow_untrusted=True).sha256


def in_use(drone):
    """The SHA-256 of the bundle in use, verified byte by byte."""
    target = drone.exec(f"readlink {ROOT}/current", check=False).stdout.strip()
    if not target:
        return None
    return Bundle.open(drone.root / ROOT[1:] / target / "bundle.epb", allow_untrusted=True).sha256


def arrived(drone, path):
    """The number of pieces of the bundle `path` on the drone."""
    folder = drone.root / ROOT[1:] / "incoming" / sha256(path)
    return sum(bool(re.fullmatch(r"\w{64}\.\d{5}", name)) for name in os.listdir(folder)) if folder.is_dir() else 0


def wait(what, seconds=60, process=None):
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return answer


def sent_bytes(drone):
    """The bytes that the drone's card has received since its creation, with all headers."""
    for line in Path(f"/proc/{drone.link.drone.pid}/net/dev").read_text().splitlines():
        name, _, figures = line.partition(":")
        if name.strip() == veth._CARD:
            return int(figures.split()[0])
    raise AssertionError("no card")


def measures(log, path):
    """Whether an installation has reached the measurement of this bundle."""
    return sha256(path) in log and '"step": "measure"' in log


def deploy(ground, path, *arguments, **env):
    return ground.edgeprune("deploy", str(path), TO, *arguments, timeout=300, **env)


def test_deployment_continues_by_itself_after_the_link_was_cut(board, ground, bundle, drone):
    drone.link.rate(20_000)
    deploying = ground.start(*ground.edgeprune_argv("deploy", str(bundle), TO))
    wait(lambda: arrived(drone, bundle) > 30, process=deploying)
    drone.link.cut()
    time.sleep(1)
    before = arrived(drone, bundle)
    time.sleep(7)
    assert arrived(drone, bundle) == before and in_use(drone) is None
    drone.link.heal()
    began = time.monotonic()
    wait(lambda: arrived(drone, bundle) > before, process=deploying)
    assert time.monotonic() - began <= 10
    _, err = deploying.communicate(timeout=240)
    assert deploying.returncode == 0, err
    assert in_use(drone) == sha256(bundle)
    assert "mAP50-95" in err and "is good" in err
    assert drone.exec(f"ls {ROOT}/incoming").stdout == ""


def test_only_the_changed_int8_file_is_sent_and_the_drone_dies_during_the_installation(
    board, ground, bundle, drone, changed
):
    path = changed(1)
    size = Bundle.open(path, allow_untrusted=True).payloads["model.int8.onnx"].size_bytes
    # Limit packets to the size on a radio; otherwise the kernel passes larger ones with a single header.
    drone.link.ground.run("ip", "link", "set", veth._CARD, "gso_max_segs", "1")
    before = sent_bytes(drone)
    deploying = ground.start(*ground.edgeprune_argv("deploy", str(path), TO))
    log = drone.root / ROOT[1:] / ".installations"
    wait(lambda: any(measures(file.read_text(), path) for file in log.glob("*.jsonl")), 120, deploying)
    sent = sent_bytes(drone) - before
    print(f"sent {sent} bytes for a file of {size}: {sent / size:.3f}")
    assert sent <= 1.10 * size
    drone.kill()
    drone.start()
    assert in_use(drone) == sha256(bundle)
    _, err = deploying.communicate(timeout=300)
    assert deploying.returncode == 0, err
    assert "trying again" in err and in_use(drone) == sha256(path)


def test_full_disk_is_reported_before_anything_is_sent(board, ground, drone, changed):
    path, former = changed(2), in_use(drone)
    drone.fill_disk(leave_bytes=8 << 20)
    done = deploy(ground, path)
    assert done.returncode == 2 and "free some" in done.stderr
    assert in_use(drone) == former and arrived(drone, path) == 0


def test_rollback_from_the_ground_restores_the_former_release(board, ground, drone, bundle):
    done = ground.edgeprune("rollback", TO)
    assert done.returncode == 0, done.stderr
    assert in_use(drone) == sha256(bundle)
    listed = json.loads(ground.edgeprune("releases", TO, "--json").stdout)
    assert listed["current"] == sha256(bundle)[:16]
    assert sorted(release["state"] for release in listed["releases"]) == ["bad", "good"]


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def radio(drone):
    """(the relay between ground and drone, the environment with which ssh uses it), with TCP's CUBIC."""
    bad_link = relay.Relay(drone.link.ground, drone.link.drone)
    yield bad_link, {"EDGEPRUNE_SSH": f"ssh -o HostName={relay.DRONE} -o HostKeyAlias={veth.DRONE}"}
    bad_link.close()


@pytest.mark.slow
def test_60_mb_arrive_over_a_bad_radio_with_three_cuts(board, ground, drone, changed, radio):
    """8 Mbit/s, 40 ms, 10 % loss each way; cuts of 8, 40 and 90 s."""
    far, env = radio
    path = changed(100, int8=False, **{"more.bin": os.urandom(60_000_000)})
    far.set(rate_kbit=8000, delay_ms=20, jitter_ms=5, loss_percent=10)
    began, waits = time.monotonic(), []
    deploying = ground.start(*ground.edgeprune_argv("deploy", str(path), TO), **env)
    lines = []
    threading.Thread(target=lambda: lines.extend(deploying.stderr), daemon=True).start()
    for number, cut_s in enumerate((40, 8, 90), 1):
        wait(lambda number=number: arrived(drone, path) > 200 * number, 600, deploying)
        far.set(cut=True)
        time.sleep(cut_s)
        before = arrived(drone, path)
        far.set(cut=False)
        back = time.monotonic()
        wait(lambda before=before: arrived(drone, path) > before, 60, deploying)
        waits.append(time.monotonic() - back)
    assert deploying.wait(timeout=1800) == 0, lines
    took = time.monotonic() - began
    print(f"{took:.0f} s in all; after each cut the next piece came after {', '.join(f'{s:.1f}' for s in waits)} s")
    assert took < 1800 and max(waits) <= 10 and in_use(drone) == sha256(path)
    assert Releases(drone.root / ROOT[1:]).current().state == "good"
