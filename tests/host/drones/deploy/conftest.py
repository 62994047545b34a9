"""Root file systems and images without an operating system, and a registry that fetches nothing."""

import os
import subprocess
from pathlib import Path

import pytest

from edgeprune.drones import wheels

from ... import drone_root
from .images import SIZE_MB


@pytest.fixture
def root(tmp_path):
    return drone_root.tree(tmp_path / "root")


@pytest.fixture
def fake_registry(tmp_path, monkeypatch):
    """The registry answers with a wheel made here; the device package's own wheel is real."""
    asked = []

    def fetch(python, extras):
        asked.append((python, tuple(extras)))
        return Path("pip.whl"), [drone_root.wheel(tmp_path)]

    monkeypatch.setattr(wheels, "fetch", fetch)
    return asked


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """An image like L4T's, made once; each test copies {path}."""
    folder = tmp_path_factory.mktemp("made")
    root = drone_root.tree(folder / "root")
    (root / "opt/edgeprune").mkdir(parents=True)
    if os.geteuid() == 0:
        for path in (root / "opt/edgeprune", root / "home/pilot"):
            os.chown(path, 1000, 1000)
    system = drone_root.ext4(root, folder / "app.ext4", SIZE_MB)
    other = drone_root.ext4(drone_root.tree(folder / "other"), folder / "other.ext4", 8)
    return drone_root.gpt(folder / "drone.img", [("APP", SIZE_MB, system), ("APP_b", 8, other)])


@pytest.fixture
def drone(made, tmp_path):
    path = tmp_path / "drone.img"
    subprocess.run(["cp", "--sparse=always", str(made), str(path)], check=True)
    yield path
    for image_ in tmp_path.glob("*.img"):  # pytest keeps what is left
        image_.unlink()


@pytest.fixture
def bundle(tmp_path):
    return drone_root.bundle(tmp_path / "tiny.epb")
