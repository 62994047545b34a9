"""The power of a complete machine is cut while it installs releases. On every next start a complete, verified release
is in use, never one older than the last that was reported as installed."""

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
        payloads = {"model.fp32.onnx": b"\xff" * 10 + random.Random(counter).randbytes(100_000)}
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
def test_power_cut_during_an_installation_leaves_a_verified_release_in_use(machine):
    seed = os.urandom(4).hex()
    rng = random.Random(seed)
    installed = 0
    for cut in range(CUTS + 1):
        machine.start()
        output = machine.console(120, b"installed ", 2)
        match = re.search(rb"found (\d+) (\d+)\r", output)
        assert match and output.count(b"installed ") >= 2, (cut, seed, output[-2000:].decode(errors="replace"))
        # The release reported as installed is in use, or the next one, whose message the cut suppressed.
        assert installed <= int(match[1]) <= installed + 1 and int(match[2]) >= installed, f"cut {cut}, seed {seed}"
        output += machine.console(rng.uniform(0, 3))
        output += machine.cut_power()
        assert b"BROKEN" not in output
        installed = max(int(number) for number in re.findall(rb"installed (\d+) good\r", output))
    assert installed >= 2 * CUTS
