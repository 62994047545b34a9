"""A drone in a box and its ground station, once a session; every test gets them on, with a good link and a free disk.

Where they cannot be had the tests are skipped, and it is said why.
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
    """Why there can be no drone here; None where there can."""
    if os.geteuid() != 0:
        return "needs root: name spaces, mounts"
    missing = {package for tool, package in _TOOLS.items() if not shutil.which(tool)}
    missing |= {"qemu-user-static"} - ({"qemu-user-static"} if os.path.exists(emulation.QEMU) else set())
    if missing:
        return f"needs the Debian packages {', '.join(sorted(missing))}"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "--uts", "--ipc", "true"], capture_output=True, text=True
    )
    if tried.returncode:
        return f"no name spaces here: {tried.stderr.strip()}"
    return None


@pytest.fixture(scope="session")
def emulated():
    obstacle = _obstacle()
    if obstacle:
        pytest.skip(f"a drone in a box {obstacle}")
    with emulation.registered():
        yield


@pytest.fixture(scope="session")
def base(emulated):
    """The root file system."""
    try:
        return rootfs.get("bookworm")
    except rootfs.MirrorSilent as silent:
        pytest.skip(f"a drone in a box: {silent}")


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
    yield drone
    drone.kill()
    (drone.folder / "disk.img").unlink()


@pytest.fixture
def drone(_drone):
    """On, reachable, with room on its disk; its files are those that the tests before left."""
    if not _drone.on:
        _drone.start()
    yield _drone
    _drone.link.restore()
    if _drone.on:
        _drone.empty_disk()


@pytest.fixture(scope="session")
def bundle(ground, tmp_path_factory):
    """The embedded detector for --target cpu, signed by the ground station's own key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPRUNE_HOME", str(ground.home / ".config/edgeprune"))
        return bundles.make(tmp_path_factory.mktemp("bundle"))
