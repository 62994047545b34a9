"""A deployment into a folder, and a snapshot of the folder."""

import os

import pytest

from edgeprune.drones.deploy import DeploySettings, rootfs

BARE = DeploySettings(agent=False)
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners")


def deploy(bundle, folder, settings=BARE):
    messages = []
    rootfs.deploy(bundle, folder, settings, messages.append)
    return "\n".join(messages)


def snapshot(folder):
    """{path: description} of everything in a folder."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        here = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        entries[str(path.relative_to(folder))] = (here.st_mode, here.st_uid, here.st_gid, here.st_mtime_ns, content)
    return entries
