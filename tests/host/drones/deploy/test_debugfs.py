"""debugfs: what it complains of is a failure."""

import pytest
from edgeprune_device.errors import InputError

from edgeprune.drones.deploy import debugfs

from .images import OFFSET

pytestmark = pytest.mark.needs("debugfs", "mke2fs", "sfdisk")


def test_complaints_of_debugfs_are_failures_though_it_ends_with_0(drone):
    with open(drone, "r+b") as stream:
        place = debugfs.Place(stream.fileno(), OFFSET, "drone")
        for command in ('stat "/nothing"', 'mkdir "/home"', "nonsense", 'sif "/home" colour 3', 'rm "/opt"'):
            with pytest.raises(InputError, match="debugfs says"):
                debugfs._execute(place, [command], writing=True)
