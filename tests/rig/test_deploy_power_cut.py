"""A whole machine loses its power while it installs releases: one that is complete and verified is in use on every next
start, never one from before the last that was called installed."""

import os
import random
import re
import shutil
import zipfile
from pathlib import Path

import edgeprune_device
import pytest
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle

from edgeprune.drones import wheels

from . import rootfs
from .machine import Machine

CUTS, BUNDLES = 8, 400
_MANIFEST = {
    "name": "tiny", "created": "2026-11-22T23:40:00Z", "edgeprune_version": "0.1.0", "target": "cpu",
    "classes": ["car"], "imgsz": [64, 64], "letterbox": {"pad": 114, "stride": 32},
    "nms": {"conf": 0.25, "iou": 0.7, "max_det": 300}, "output": "raw",
    "models": {"fp32": {"payload": "model.fp32.onnx"}}, "engines": {}, "evaluation": None, "lineage": {},
}  # fmt: skip


@pytest.fixture
def machine(base, tmp_path, monkeypatch):
    if not shutil.which("qemu-system-aarch64") or not shutil.which("cpio"):
        pytest.skip("needs the Debian packages qemu-system-arm, cpio")
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "host"))
    programs = tmp_path / "programs"
    bundles = programs / "bundles"
    bundles.mkdir(parents=True)
    for counter in range(1, BUNDLES + 1):
        payloads = {"model.fp32.onnx": random.Random(counter).randbytes(100_000)}
        Bundle.write(bundles / f"{counter:04}.epb", {**_MANIFEST, "counter": counter}, payloads, keys.load_or_create())
    trusted = programs / "home" / "trusted"
    trusted.mkdir(parents=True)
    shutil.copy(keys.home() / "keys" / "host.pub", trusted)
    monkeypatch.setenv("XDG_CACHE_HOME", str(rootfs.cache()))
    _, needed = wheels.fetch(wheels.Python("3.11.2", "aarch64", (2, 36)), [])
    for wheel in needed:
        if wheel.name.lower().startswith(("pynacl", "cffi", "pycparser")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(programs)
    package = Path(edgeprune_device.__file__).parent
    command = "env EDGEPRUNE_HOME=/opt/home python3 /opt/installer.py"
    machine = Machine(
        tmp_path, base, command, [package, Path(__file__).with_name("installer.py"), *sorted(programs.iterdir())]
    )
    yield machine
    machine.close()


@pytest.mark.slow
def test_a_power_cut_in_an_installation_leaves_a_verified_release_in_use(machine):
    seed = os.urandom(4).hex()
    rng = random.Random(seed)
    installed = 0
    for cut in range(CUTS + 1):
        machine.start()
        said = machine.console(120, b"installed ", 2)
        found = re.search(rb"found (\d+) (\d+)\r", said)
        assert found and said.count(b"installed ") >= 2, (cut, seed, said[-2000:].decode(errors="replace"))
        # What was said to be installed is in use; or the one after it, whose message the cut took.
        assert installed <= int(found[1]) <= installed + 1 and int(found[2]) >= installed, f"cut {cut}, seed {seed}"
        said += machine.console(rng.uniform(0, 3))
        said += machine.cut_power()
        assert b"BROKEN" not in said
        installed = max(int(number) for number in re.findall(rb"installed (\d+) good\r", said))
    assert installed >= 2 * CUTS
