"""A whole machine loses its power while it writes reports: those it had called kept are there, and none is half."""

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
def test_every_report_that_was_kept_survives_a_power_cut_and_none_is_half(machine):
    seed = os.urandom(4).hex()
    rng = random.Random(seed)
    kept = set()
    for cut in range(CUTS):
        machine.start()
        said = machine.console(90, b"put ", 3)
        assert said.count(b"put ") >= 3, said[-2000:].decode(errors="replace")
        said += machine.console(rng.uniform(0, 2))
        said += machine.cut_power()
        kept |= set(re.findall(rb"put ([0-9a-f]{64})\r", said))
        found = machine.files("var/spool/edgeprune/pending")
        reports = {name: content for name, content in found.items() if not name.startswith(".")}
        for name, content in reports.items():
            assert hashlib.sha256(content).hexdigest() == name.removesuffix(".json"), f"cut {cut}, seed {seed}"
        lost = {identity.decode() for identity in kept} - {name.removesuffix(".json") for name in reports}
        assert not lost, f"cut {cut}, seed {seed}: {len(lost)} of {len(kept)} lost"
    assert len(kept) >= 3 * CUTS
