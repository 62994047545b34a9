"""A bundle is written to a disk image of a real arm64 system with debugfs. A complete machine starts from that image,
its kernel reads the partition table, and the installed bundle works as the user to whom it belongs."""

import json
import os
import re
import shutil
import subprocess

import pytest
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision.evaluation import EvaluationSet

from edgeprune.drones.deploy import DeploySettings, image

from . import bundle as bundles
from . import rootfs
from .machine import _FIRST, _MODULES, Machine, kernel

_OFFSET_MB, _SIZE_MB = 20, 900
_PICTURES = 3
#: The first process of the machine.
_SCRIPT = """#!/bin/sh
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
pilot() { setpriv --reuid 1000 --regid 1000 --clear-groups env HOME=/home/pilot "$@"; }
echo "step disk $(findmnt -no SOURCE /)"
echo "step bundle $(sha256sum </opt/edgeprune/current/bundle.epb)"
echo "step trusted $(pilot edgeprune keys | grep -c SHA256)"
pilot edgeprune releases
echo "step releases $?"
pilot edgeprune run --source /data --output /tmp/lines --runtime ort </dev/null
echo "step run $?"
echo "step lines $(grep -c '"detections"' /tmp/lines)"
sed 's/^/line /' /tmp/lines
echo "step state $(sed -n 's/^ *"state": "\\([a-z]*\\)".*/\\1/p' /opt/edgeprune/current/release.json)"
sync
echo "step end"
sleep 1000
"""


class Started(Machine):
    """A computer whose disk is a given image; it starts from the first partition."""

    def __init__(self, folder, disk):
        self._kernel, usual = kernel()
        self.disk, self._qemu = disk, None
        # Several archives may follow one another; the last one takes precedence.
        (folder / "first").mkdir()
        (folder / "first/init").write_text((_FIRST % " ".join(_MODULES)).replace("/dev/vda ", "/dev/vda1 "))
        (folder / "first/init").chmod(0o755)
        packed = subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc"], cwd=folder / "first", input=b"init\n", stdout=subprocess.PIPE,
            check=True,
        )  # fmt: skip
        self._initrd = folder / "initrd"
        self._initrd.write_bytes(usual.read_bytes() + packed.stdout)


@pytest.fixture
def disk(base, tmp_path, monkeypatch):
    """The image before the deployment."""
    if not all(shutil.which(tool) for tool in ("qemu-system-aarch64", "cpio", "sfdisk", "debugfs")):
        pytest.skip("needs the Debian packages qemu-system-arm, cpio, fdisk, e2fsprogs")
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "host"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(rootfs.cache()))
    tree = tmp_path / "tree"
    subprocess.run(["cp", "-a", str(base), str(tree)], check=True)
    with open(tree / "etc/passwd", "a") as stream:
        stream.write("pilot:x:1000:1000:Pilot:/home/pilot:/bin/sh\n")
    (tree / "home/pilot").mkdir()
    os.chown(tree / "home/pilot", 1000, 1000)
    (tree / "data").mkdir()
    (tree / "sbin/machine").write_text(_SCRIPT)
    (tree / "sbin/machine").chmod(0o755)
    (tmp_path / "bundle").mkdir()
    bundle = Bundle.open(bundles.make(tmp_path / "bundle"))
    for item, _ in zip(EvaluationSet.read(bundle.read("evaluation.zip")), range(_PICTURES)):
        (tree / "data" / item.name).write_bytes(item.data)
    system, path = tmp_path / "app.ext4", tmp_path / "drone.img"
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(system), f"{_SIZE_MB}M"], check=True, capture_output=True
    )
    with open(path, "wb") as stream:
        stream.truncate((_OFFSET_MB + _SIZE_MB + 1) << 20)
    table = (
        f"label: gpt\nstart={_OFFSET_MB << 11}, size={_SIZE_MB << 11}, name=APP\nstart=2048, size=16384, name=kernel\n"
    )
    subprocess.run(["sfdisk", "-q", str(path)], input=table.encode(), check=True, capture_output=True)
    command = ["dd", f"if={system}", f"of={path}", "bs=1M", f"seek={_OFFSET_MB}", "conv=notrunc,sparse", "status=none"]
    subprocess.run(command, check=True)
    shutil.rmtree(tree)
    return path, bundle


@pytest.mark.slow
def test_machine_starts_from_the_image_and_runs_the_bundle(disk, tmp_path):
    path, bundle = disk
    messages = []
    image.deploy(bundle, path, DeploySettings(), messages.append, kernel=False)
    assert "pilot (1000:1000)" in "\n".join(messages) and "every file was read back" in messages[-1]
    machine = Started(tmp_path, path)
    machine.start()
    try:
        console = machine.console(900, b"step end", 1).decode(errors="replace")
        console += machine.cut_power().decode(errors="replace")
    finally:
        machine.close()
    steps = dict(re.findall(r"step (\w+) ([^\r\n]*)", console))
    assert steps == {
        "disk": "/dev/vda1",
        "bundle": f"{bundle.sha256}  -",
        "trusted": steps["trusted"],
        "releases": "0",
        "run": "0",
        "lines": str(_PICTURES),
        "state": "good",
    }, console[-4000:]
    assert int(steps["trusted"]) >= 1 and bundle.sha256[:16] in console
    lines = [json.loads(line) for line in re.findall(r"^line ([^\r\n]*)", console, re.M)]
    assert [line["release"] for line in lines] == [bundle.sha256[:16]] * _PICTURES
    assert sum(len(line["detections"]) for line in lines) > 0
