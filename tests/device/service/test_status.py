import os

from edgeprune_device import clock
from edgeprune_device.errors import InputError
from edgeprune_device.service import status

from ... import fuzz


def test_written_status_is_read_while_it_is_fresh(tmp_path):
    path = tmp_path / "status.json"
    assert status.read(path, fresh_s=5) is None
    data = {
        "pid": os.getpid(), "boot_id": clock.now()["boot_id"], "boot_s": status.boot_s(), "state": "running",
        "release": None, "frames": 0, "last_frame_boot_s": None, "restarts": 0, "lost_lines": 0, "pace": None,
        "reason": None, "since_boot_s": 0.0,
    }  # fmt: skip
    status.write(path, data)
    assert status.read(path, fresh_s=5) is None  # this process does not hold the lock of a service
    with open(tmp_path / status.LOCK, "wb"):
        assert status.read(path, fresh_s=5) == {"schema_version": 1, **data}
        earlier = {name: value for name, value in data.items() if name != "pace"}  # the file of an earlier version
        status.write(path, earlier)
        assert status.read(path, fresh_s=5) == {"schema_version": 1, **earlier}
        for damage in ({"frames": "5"}, {"state": "well"}, {"pid": True}, {"more": 1}, {"release": "/etc"}):
            status.write(path, {**data, **damage})
            assert status.read(path, fresh_s=5) is None
        status.write(path, {**data, "boot_s": data["boot_s"] - 9})
        assert status.read(path, fresh_s=5) is None and status.read(path, fresh_s=60)["state"] == "running"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["lock", "status.json"]


@fuzz.counts(400, 30_000)
def test_any_status_is_read_or_is_none(tmp_path, count):
    path = tmp_path / "status.json"
    good = {
        "schema_version": 1, "pid": os.getpid(), "boot_id": clock.now()["boot_id"], "boot_s": status.boot_s(),
        "release": "9f86d081884c7d65", "state": "running", "frames": 17, "last_frame_boot_s": 93.0, "restarts": 0,
        "lost_lines": 0, "reason": None, "since_boot_s": 0.0,
    }  # fmt: skip

    def attempt(mutant):
        path.write_bytes(mutant)
        if status.read(path, fresh_s=600) is None:
            raise InputError("none")

    with open(tmp_path / status.LOCK, "wb"):
        result = fuzz.run(attempt, fuzz.of_json(good, count))
    assert result["accepted"] and result["refused"] > count // 2
