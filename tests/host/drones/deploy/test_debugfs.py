"""debugfs: any error that it prints is a failure, and a program that does not end is killed."""

import os

import pytest
from edgeprune_device import files
from edgeprune_device.errors import InputError

from edgeprune.drones.deploy import DeploySettings, debugfs, image

from .images import OFFSET

pytestmark = pytest.mark.needs("debugfs", "mke2fs", "sfdisk")


def test_errors_of_debugfs_are_failures_despite_exit_code_0(drone):
    with open(drone, "r+b") as stream:
        place = debugfs.Place(stream.fileno(), OFFSET, "drone")
        for command in ('stat "/nothing"', 'mkdir "/home"', "nonsense", 'sif "/home" colour 3', 'rm "/opt"'):
            with pytest.raises(InputError, match="debugfs failed"):
                debugfs._execute(place, [command], writing=True)


@pytest.mark.parametrize("name, option", [("e2fsck", "-f"), ("debugfs", "-c"), ("debugfs", "-w")])
def test_a_program_that_does_not_end_is_killed_and_nothing_changes(drone, bundle, tmp_path, monkeypatch, name, option):
    """The FAKE program hangs if it gets this option: when it checks, reads or writes."""
    fake, pid, right = tmp_path / "bin" / name, tmp_path / "pid", debugfs.tool(name)
    fake.parent.mkdir()
    hangs = f'if [ "$1" = {option} ]; then echo $$ >"{pid}"; exec sleep 600; fi'
    fake.write_text(f'#!/bin/sh\n{hangs}\nexec "{right}" "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(debugfs, "_LIMIT_S", 2.0)
    before, files_before = files.sha256(drone), {path for path in drone.parent.iterdir() if path != pid}
    with pytest.raises(InputError, match=rf"APP: {name} did not end within 2 s; .*use another image$"):
        image.deploy(bundle, drone, DeploySettings(agent=False), lambda text: None, kernel=False)
    assert files.sha256(drone) == before and {*drone.parent.iterdir()} == {*files_before, pid}
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
