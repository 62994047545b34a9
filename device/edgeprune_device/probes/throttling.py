"""The events that throttle a Jetson: over-current events, and the alerts of its thermal zones.

    oc1   under-voltage of the supply
    oc2   average current above the limit
    oc3   instantaneous current above the limit; alone only a warning: the board slows down for microseconds

The counters start at boot, so only differences are meaningful. `tj`, `cpu` and others are alerts, 0: not active.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import List

from edgeprune_device.probes import sysfs
from edgeprune_device.probes.channel import Channel

__all__ = ["channels"]

_MOST_EVENTS = 1 << 40
_MOST_STATES = 1000
# JetPack 5 and later on Orin and Thor: oc1_event_cnt; on Xavier: oc1_irq_cnt.
_COUNTER = re.compile(r"(oc[0-9]+)_(?:event|irq)_cnt")
_ALERT = re.compile(r"(.+)-throttle-alert|(hot-surface)-alert")


def channels(root: Path) -> List[Channel]:
    """Counters ("event") and alerts ("throttle")."""
    events = []
    for chip, folder in sysfs.hwmons(root):
        for path in sysfs.children(folder, "oc") if chip == "soctherm_oc" else []:
            counter = _COUNTER.fullmatch(path.name)
            if counter:
                events.append(Channel("event", counter.group(1), "count", partial(sysfs.number, path, 0, _MOST_EVENTS)))
    # The counter shows an alert even if it lasts only from one reading to the next.
    for folder in sysfs.children(root / "sys/devices/platform"):
        alert, path = _ALERT.fullmatch(folder.name), folder / "thermal_trip_event"
        if alert and path.exists():
            name = sysfs.clean(alert.group(1) or alert.group(2))
            events.append(Channel("event", name, "count", partial(sysfs.number, path, 0, _MOST_EVENTS)))
    folders = {folder.name: folder for folder in sysfs.children(root / "sys/devices/virtual/thermal", "cooling_device")}
    folders.update({folder.name: folder for folder in sysfs.children(root / "sys/class/thermal", "cooling_device")})
    for folder in folders.values():
        alert = _ALERT.fullmatch(sysfs.line(folder / "type") or "")
        if alert:
            name, path = sysfs.clean(alert.group(1) or alert.group(2)), folder / "cur_state"
            events.append(Channel("throttle", name, "state", partial(sysfs.number, path, 0, _MOST_STATES)))
    return events
