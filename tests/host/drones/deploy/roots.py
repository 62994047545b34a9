"""A deployment into a folder, and what is in the folder after."""

import os

import pytest

from edgeprune.drones.deploy import DeploySettings, rootfs

BARE = DeploySettings(agent=False)
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners")


def deploy(bundle, folder, settings=BARE):
    said = []
    rootfs.deploy(bundle, folder, settings, said.append)
    return "\n".join(said)


def snapshot(folder):
    """{path: what it is} of everything in a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        here = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (here.st_mode, here.st_uid, here.st_gid, here.st_mtime_ns, content)
    return found
