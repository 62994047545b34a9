import json

from edgeprune_device import schema
from edgeprune_device.probes.series import Series

S = 10**9
UNITS = {"power": "mW", "temperature": "C", "clock": "Hz", "event": "count", "throttle": "state"}


def series(times=None, **channels):
    """series(power__VDD_IN=[…]): one value per second from 0 s to 30 s."""
    keys = {key.replace("__", "."): values for key, values in channels.items()}
    times = [second * S for second in range(31)] if times is None else times
    columns = {key: (key.split(".")[0], UNITS[key.split(".")[0]], tuple(values)) for key, values in keys.items()}
    return Series(1.0, tuple(times), columns, {}, {"mean": 1.0, "max": 2.0}, 0.001)


def steps(idle, load, after=0):
    return [idle] * 10 + [load] * 11 + [after] * 10


def fits(name, data):
    """Check that the object is valid JSON and fits its part of the report's schema."""
    root = schema.load("report")
    schema._check(root["$defs"][name], json.loads(json.dumps(data, allow_nan=False)), name, root)
    return True
