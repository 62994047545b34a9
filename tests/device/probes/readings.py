"""The readings of recorded boards (tests/device/sysfs)."""

import sysfs as boards
from edgeprune_device import probes

ORINS = [name for name in boards.NAMES if "orin" in name]


def values(root):
    return {channel.key: channel.read() for channel in probes.discover(root)}
