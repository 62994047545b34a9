"""An emulated drone and its ground station, once per session. Each test gets them on, with a good link and a free disk.

If they are not available, the tests are skipped with the reason.
"""

import os
import shutil
import subprocess

import pytest

from . import bundle as bundles
from . import emulation, rootfs
from .drone import Drone, Ground
from .link import Link

_TOOLS = {
    "mmdebstrap": "mmdebstrap", "ip": "iproute2", "tc": "iproute2", "nft": "nftables", "ssh": "openssh-client",
    "unshare": "util-linux", "nsenter": "util-linux", "mkfs.ext4": "e2fsprogs",
}  # fmt: skip


def _obstacle():
    """Why no drone can be emulated here; None if it can."""
    if os.geteuid() != 0:
        return "needs root (for name spaces and mounts)"
    missing = {package for tool, package in _TOOLS.items() if not shutil.which(tool)}
    missing |= {"qemu-user-static"} - ({"qemu-user-static"} if os.path.exists(emulation.QEMU) else set())
    if missing:
        return f"needs the Debian packages {', '.join(sorted(missing))}"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "--uts", "--ipc", "true"], capture_output=True, text=True
    )
    if tried.returncode:
        return f"no name spaces: {tried.stderr.strip()}"
    return None


@pytest.fixture(scope="session")
def emulated():
    obstacle = _obstacle()
    if obstacle:
        pytest.skip(f"the emulated drone {obstacle}")
    with emulation.registered():
        yield


@pytest.fixture(scope="session")
def base(emulated):
    """The root file system."""
    try:
        return rootfs.get("bookworm")
    except rootfs.MirrorSilent as silent:
        pytest.skip(f"the emulated drone: {silent}")


@pytest.fixture(scope="session")
def _link(emulated):
    link = Link()
    yield link
    link.close()


@pytest.fixture(scope="session")
def ground(base, _link, tmp_path_factory):
    return Ground(tmp_path_factory.mktemp("ground"), base, _link)


@pytest.fixture(scope="session")
def _drone(base, _link, ground, tmp_path_factory):
    drone = Drone(tmp_path_factory.mktemp("drone"), base, _link, ground.public_key)
    drone.start()
    yield drone
    drone.kill()
    (drone.folder / "disk.img").unlink()


@pytest.fixture
def drone(_drone):
    """The drone, on, reachable and with space on its disk; it keeps the files of earlier tests."""
    if not _drone.on:
        _drone.start()
    yield _drone
    _drone.link.restore()
    if _drone.on:
        _drone.empty_disk()


@pytest.fixture(scope="session")
def bundle(ground, tmp_path_factory):
    """The built-in detector for --target cpu, signed with the ground station's key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPRUNE_HOME", str(ground.home / ".config/edgeprune"))
        return bundles.make(tmp_path_factory.mktemp("bundle"))


class Agent:
    """The edgeprune that `edgeprune setup` installed on the drone: agent("info --json")."""

    def __init__(self, drone):
        self.drone = drone
        command = drone.exec("readlink -f .local/bin/edgeprune").stdout.strip()
        self._folder = command.rpartition("/bin/")[0]

    @property
    def folder(self):
        """Its virtual environment, as a path on this machine."""
        return self.drone.root / self._folder.lstrip("/")

    def __call__(self, arguments, check=True):
        return self.drone.exec(f".local/bin/edgeprune {arguments}", check=check)

    def python(self, arguments):
        """Run its Python: agent.python("script.py 1 2")."""
        return self.drone.exec(f"{self._folder}/bin/python {arguments}")


def wheels_for(drone, glibc):
    """Wheels for pip on the ground, which has no internet; downloaded beforehand and kept."""
    from edgeprune.drones import wheels

    version = drone.exec("python3 -c 'import platform; print(platform.python_version())'").stdout.strip()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(rootfs.cache()))
        pip, _ = wheels.fetch(wheels.Python(version, "aarch64", glibc), ["ort"])
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(pip.parent)}


@pytest.fixture(scope="session")
def agent(_drone, ground):
    """The drone after `edgeprune setup root@drone --with ort` on the ground."""
    environment = wheels_for(_drone, (2, 36))
    done = ground.edgeprune("setup", "root@drone", "--with", "ort", timeout=300, **environment)
    assert done.returncode == 0, done.stderr
    return Agent(_drone)
