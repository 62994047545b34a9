"""A drone similar to JetPack 5: Python 3.9 and glibc 2.31 (bullseye), which need older wheels."""

import json
import shutil

import pytest

from . import rootfs
from .conftest import Agent, wheels_for
from .drone import Drone, Ground
from .link import Link


@pytest.fixture
def old(emulated, tmp_path):
    """(ground, drone), both switched on."""
    base = rootfs.get("bullseye")
    link = Link()
    ground = Ground(tmp_path / "ground", base, link)
    drone = Drone(tmp_path / "drone", base, link, ground.public_key)
    drone.start()
    yield ground, drone
    drone.kill()
    link.close()
    (drone.folder / "disk.img").unlink()


@pytest.mark.slow
def test_old_drone_is_set_up_measured_and_collected_from(old, bundle):
    ground, drone = old
    done = ground.edgeprune("setup", "root@drone", "--with", "ort", timeout=300, **wheels_for(drone, (2, 31)))
    assert done.returncode == 0, done.stderr
    agent = Agent(drone)
    shutil.copy(bundle, drone.root / "root/rig.epb")
    agent(
        "bench rig.epb --allow-untrusted --runtime ort --precision int8 --seconds 1 --warmup 1 --report measured.json"
    )
    report = json.loads((drone.root / "root/measured.json").read_text())
    assert report["environment"]["python"] == "3.9.2" and abs(report["map50_95_delta"]) < 0.02
    done = ground.edgeprune("collect", "root@drone")
    assert done.returncode == 0, done.stderr
    (kept,) = (p for p in (ground.home / ".local/share/edgeprune/reports").glob("*.json") if "receipt" not in p.name)
    assert json.loads(kept.read_text()) == report
