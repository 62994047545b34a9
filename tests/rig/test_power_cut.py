"""The power of a complete machine is cut while it writes reports. All reports reported as stored exist completely."""

import hashlib
import os
import random
import re
import shutil
from pathlib import Path

import edgeprune_device
import pytest

from .machine import Machine

CUTS = 5


@pytest.fixture
def machine(base, tmp_path):
    if not shutil.which("qemu-system-aarch64") or not shutil.which("cpio"):
        pytest.skip("needs the Debian packages qemu-system-arm, cpio")
    programs = [Path(edgeprune_device.__file__).parent, Path(__file__).with_name("writer.py")]
    machine = Machine(tmp_path, base, "python3 /opt/writer.py", programs)
    yield machine
    machine.close()


@pytest.mark.slow
def test_stored_reports_survive_a_power_cut_and_none_is_incomplete(machine):
    seed = os.urandom(4).hex()
    rng = random.Random(seed)
    kept = set()
    for cut in range(CUTS):
        machine.start()
        output = machine.console(90, b"put ", 3)
        assert output.count(b"put ") >= 3, output[-2000:].decode(errors="replace")
        output += machine.console(rng.uniform(0, 2))
        output += machine.cut_power()
        kept |= set(re.findall(rb"put ([0-9a-f]{64})\r", output))
        files = machine.files("var/spool/edgeprune/pending")
        reports = {name: content for name, content in files.items() if not name.startswith(".")}
        for name, content in reports.items():
            assert hashlib.sha256(content).hexdigest() == name.removesuffix(".json"), f"cut {cut}, seed {seed}"
        lost = {identity.decode() for identity in kept} - {name.removesuffix(".json") for name in reports}
        assert not lost, f"cut {cut}, seed {seed}: {len(lost)} of {len(kept)} lost"
    assert len(kept) >= 3 * CUTS
